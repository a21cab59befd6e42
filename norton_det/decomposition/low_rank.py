"""The best subspaces of a linear layer's outputs: principal components, completed by the weight where data are few."""

import torch
from torch import Tensor


def output_directions(outputs: Tensor, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Principal directions of a linear layer's outputs; the last r of them span the best subspace of rank r.

    Args:
        outputs: of the layer, (rows, O), two rows at least.
        weight: of the layer, (O, I). Where there are few rows, directions that they do not show are taken from it.
        ridge: how much the weight counts, as a share of the mean variance of the outputs.

    Returns:
        Energies (O,) in rising order, and orthonormal directions (O, O) in their columns; float64.
    """
    weight = weight.detach().double()
    covariance, energy = torch.cov(outputs.double().T), weight @ weight.T
    share = ridge * covariance.diagonal().mean() / energy.diagonal().mean().clamp_min(1e-30)
    energies, directions = torch.linalg.eigh(covariance + share * energy)
    return energies, directions

"""Principal angles between the subspaces that factor matrices span, and NORTON's distance of filters made of them.

NORTON (section III-B) measures the distance of two filters as the sum, over the three modes, of the principal angle
between the subspaces that their factor matrices span (PABS). It does not change when CP components are scaled or
permuted.

Legend: ``O`` filters, ``D`` rows of a factor matrix (I, Kh or Kw), ``R`` rank, ``M = min(D, R)``.
"""

import torch
from torch import Tensor

from .cp import Factors

_NEAR = 1e-3  # sin^2 below which the Gram form loses digits and the residual itself is formed
_CHUNK = 1 << 22  # numbers per block of residuals: 32 MB


def orthonormal_basis(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the column spaces of (O, D, R) matrices.

    Returns:
        bases (O, D, min(D, R)) in float64, whose columns beyond the dimension of the space are zero, and the
        dimensions (O,). Columns are scaled to norm 1 first, so the scale of a component does not count.
    """
    factor = factor.detach().cpu().double()
    largest = factor.abs().amax(dim=1, keepdim=True)
    factor = factor / torch.where(largest > 0, largest, 1.0)  # no underflow in the squares
    norms = factor.norm(dim=1, keepdim=True)
    factor = factor / torch.where(norms > 0, norms, 1.0)
    if factor.shape[2] == 1:
        return factor, (norms[:, 0, 0] > 0).long()
    left, singular, _ = torch.linalg.svd(factor, full_matrices=False)  # (O, D, M), (O, M)
    # float32 factors carry errors of about 1e-7; what is below is not a direction of the filter
    present = singular > 1e-6 * singular[:, :1].clamp_min(1e-300)
    return left * present.unsqueeze(1), present.sum(dim=1)


def subspace_angles(factor: Tensor) -> Tensor:
    """Largest principal angle between the column spaces of every pair of factor matrices.

    ``asin`` of the spectral norm of the residual ``Q_j - P_i Q_j`` (Knyazev and Argentati, 2002), exact also for
    nearly equal subspaces, where ``acos`` fails. When two spaces have different dimensions the smaller one is
    compared; the zero space is contained in every other (angle 0).

    Args:
        factor: (O, D, R), one factor matrix per filter.

    Returns:
        Angles (O, O) in radians, symmetric, in [0, pi/2], zero diagonal, float64, on the CPU.
    """
    basis, dimension = orthonormal_basis(factor)
    count, rows, columns = basis.shape
    flat = basis.permute(0, 2, 1).reshape(count * columns, rows)
    cosines = (flat @ flat.T).view(count, columns, count, columns).permute(0, 2, 1, 3)  # Q_i^T Q_j: (O, O, M, M)
    order = dimension.unsqueeze(1) >= dimension.unsqueeze(0)  # (i, j): j is not larger than i
    sine_squared = _residual_norm(cosines, dimension)
    sine_squared = torch.where(order, sine_squared, sine_squared.T)
    sine_squared = torch.maximum(sine_squared, sine_squared.T)  # the two directions differ by rounding
    # pairs that are too close for the Gram form: form the residual
    full = dimension == rows
    known = full.unsqueeze(1) | full.unsqueeze(0) | (dimension == 0).unsqueeze(1) | (dimension == 0).unsqueeze(0)
    sine_squared[known] = 0.0
    first, second = torch.nonzero(torch.triu((sine_squared < _NEAR) & ~known, 1), as_tuple=True)
    swap = dimension[first] < dimension[second]
    first, second = torch.where(swap, second, first), torch.where(swap, first, second)
    size = max(1, _CHUNK // (rows * columns))
    for i, j in zip(first.split(size), second.split(size), strict=True):
        residual = basis[j] - basis[i] @ (basis[i].transpose(1, 2) @ basis[j])  # (pairs, D, M)
        exact = _largest_eigenvalue(residual.transpose(1, 2) @ residual)
        sine_squared[i, j] = exact
        sine_squared[j, i] = exact
    angles = torch.asin(sine_squared.clamp(0.0, 1.0).sqrt())
    return angles.fill_diagonal_(0.0)


def _residual_norm(cosines: Tensor, dimension: Tensor) -> Tensor:
    """Squared spectral norm (O, O) of ``(I - P_i) Q_j`` from ``Q_i^T Q_j`` (O, O, M, M)."""
    columns = cosines.shape[2]
    if columns == 1:
        return dimension.unsqueeze(0) - cosines[:, :, 0, 0].square()
    present = torch.arange(columns, device=dimension.device) < dimension.unsqueeze(1)  # (O, M)
    gram = torch.diag_embed(present.to(cosines.dtype))  # Q_j^T Q_j: (O, M, M)
    return torch.cat(
        [
            _largest_eigenvalue(gram.unsqueeze(0) - block.transpose(2, 3) @ block)
            for block in cosines.split(max(1, _CHUNK // cosines[0].numel()))
        ]
    )


def _largest_eigenvalue(symmetric: Tensor) -> Tensor:
    """Largest eigenvalue of (..., M, M), in closed form for M <= 2."""
    if symmetric.shape[-1] == 1:
        return symmetric[..., 0, 0]
    if symmetric.shape[-1] == 2:
        p, q, off = symmetric[..., 0, 0], symmetric[..., 1, 1], symmetric[..., 0, 1]
        return (p + q) / 2 + torch.hypot((p - q) / 2, off)
    return torch.linalg.eigvalsh(symmetric)[..., -1]


def pabs_distance(factors: Factors) -> Tensor:
    """Distance (O, O) of all pairs of filters: the three modes' largest principal angles summed, in radians."""
    return sum((subspace_angles(factor) for factor in (factors.b, factors.c)), subspace_angles(factors.a))

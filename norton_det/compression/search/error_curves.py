"""How much of a layer's output is lost at each of its ranks, or of its readers' at each width: the dense network alone.

*From weights*: the relative squared error of the weight at rank R; of channels, the share that is dropped. *From
images*: what is left of the output's squared error, relative to its variance, when the layer is fitted as
``fit_resnet`` and ``fit_detector`` will fit it (rank), or when its readers are given what can be predicted of the
dropped channels from the best ones kept (width, ``css_curve``). Filters are fitted one by one in all of these, so a
sample of them tells of the layer; the errors are of rows that the fit has not seen.

Legend: ``O`` filters, ``I`` input channels, ``K = Kh*Kw``, ``F = K*I`` features, ``rows`` positions of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...decomposition.cp import cp_decompose, nmse
from ...decomposition.cp_output import flatten_weight, unflatten_weight
from ...decomposition.moments import Moments
from ...utils.errors import InputError
from ..fitter import FitSettings, fit_layer
from ..sampling import draw_positions, output_size, patches
from .settings import SearchSettings

SHARES = tuple(step / 8 for step in range(8, 0, -1))  # of channels that are kept
STARTS = 2  # of the sample's decompositions
SAMPLE_FIT = FitSettings(shrinkage=0.3, sweeps=(2, 1))


def width_grid(width: int) -> list[int]:
    """Widths to choose from, the full one first: eighths."""
    return list(dict.fromkeys(max(1, int(width * share)) for share in SHARES))


def conv_ranks(largest: int, ranks: Sequence[int]) -> list[int | None]:
    """CP ranks to choose from, dense (``None``) first: those of ``ranks`` that are not above the largest."""
    return [None, *(rank for rank in ranks if rank <= largest)]


def matrix_ranks(largest: int) -> list[int | None]:
    """Ranks of a linear layer to choose from, dense (``None``) first; they fall by a quarter or so."""
    steps = [2**power * quarters // 4 for power in range(16, 3, -1) for quarters in (4, 3)]
    return [None, *(rank for rank in steps if rank <= largest)]


def sample_filters(outputs: int, count: int) -> Tensor:
    """Indices of ``count`` filters that stand for all of a layer, spread evenly."""
    return torch.linspace(0, outputs - 1, min(count, outputs)).round().long()


def weight_errors(weight: Tensor, ranks: Sequence[int | None], filters: int) -> list[float]:
    """Relative squared error of a weight (O, I, Kh, Kw), of so many of its filters, or of (O, I), at each rank."""
    weight = weight.detach().float().cpu()
    if weight.ndim == 2:
        matrix = weight.double()
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        energies = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0)
        return [float(energies[rank:].sum() / energies.sum().clamp_min(1e-300)) if rank else 0.0 for rank in ranks]
    sample = weight[sample_filters(len(weight), filters)]
    return [nmse(sample, cp_decompose(sample, rank, starts=STARTS)) if rank else 0.0 for rank in ranks]


@dataclass
class FilterFit:
    """A convolution's sampled filters at a rank: ``error`` and what they give instead of the dense ones.

    Attributes:
        filters: their indices, (o,).
        weight: (o, I, Kh, Kw).
        shift: to be added to their outputs, (o,).
    """

    error: float
    filters: Tensor
    weight: Tensor
    shift: Tensor


class ConvRows:
    """Rows of a convolution's input patches and of its sampled filters' outputs; a fifth is kept to test the fit on.

    Args:
        name: of the layer, for errors.
        conv: the dense layer, its bias left out.
        settings: rows, in all, and filters to look at.
        scale: of the normalisation after it, (O,): what its outputs weigh in the error.
    """

    def __init__(self, name: str, conv: nn.Conv2d, settings: SearchSettings, scale: Tensor | None = None) -> None:
        self.name, self.conv, self.remaining = name, conv, settings.rows
        self.filters = sample_filters(conv.out_channels, settings.filters)
        self.scale = torch.ones(len(self.filters)) if scale is None else scale[self.filters]
        self.moments, self.seen = Moments(name), 0
        self.test_rows: list[Tensor] = []
        self.weight = flatten_weight(conv.weight.detach())[self.filters]  # (o, F)

    def add(self, maps: Tensor, take: int, generator: torch.Generator) -> None:
        """Add ``take`` positions of inputs (N, I, H, W)."""
        grid = (len(maps), *output_size(maps, self.conv))
        positions = draw_positions(grid, min(take, self.remaining), generator).to(maps.device)
        count = positions.shape[1]
        if not count:
            return
        self.remaining -= count
        x = patches(maps.detach(), self.conv, positions)
        for_test = (torch.arange(self.seen, self.seen + count) % 5 == 0).to(x.device)
        self.seen += count
        self.test_rows.append(x[for_test])
        self.moments.add(x[~for_test], x[~for_test] @ self.weight.T)

    def fit(self, ranks: Sequence[int]) -> list[FilterFit]:
        """The sampled filters at each rank.

        Raises:
            InputError: too few rows, or not finite ones.
        """
        if self.moments.count < 2 or not any(map(len, self.test_rows)):
            raise InputError(f"{self.name}: expected activations on the calibration images, got none; give more images")
        moments, x = self.moments.finish(), torch.cat(self.test_rows)
        dense = self.conv.weight.detach()[self.filters]
        fits = []
        for rank in ranks:
            fit = fit_layer(moments, self.weight, SAMPLE_FIT, cp_decompose(dense, rank, starts=STARTS))
            lost = (x - moments.mean_x.float()) @ (self.weight.double() - fit.weight).float().T * self.scale
            true = (x - moments.mean_x.float()) @ self.weight.T * self.scale
            error = float(lost.square().sum() / true.square().sum().clamp_min(1e-30))
            weight = unflatten_weight(fit.weight, self.conv.kernel_size)
            fits.append(FilterFit(min(1.0, error), self.filters, weight.float(), fit.bias.float()))
        return fits


def projection(covariance: Tensor, order: Tensor, keep: int) -> Tensor:
    """The matrix (C, C) that predicts all channels from the first ``keep`` of an order, by their covariance (C, C)."""
    kept = order[:keep]
    system = covariance[kept][:, kept].clone()
    system.diagonal().add_(1e-4 * covariance.diagonal().mean().clamp_min(1e-30))
    matrix = torch.zeros_like(covariance)
    matrix[:, kept] = torch.linalg.solve(system, covariance[kept]).T
    return matrix

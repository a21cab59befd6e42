"""Which filters to keep: principal angles between factor subspaces, elimination order, and other criteria.

NORTON (section III-B) measures the distance of filters i and j as the sum, over the three modes, of the
principal angle between the subspaces that their factor matrices span (PABS). It does not change when CP
components are scaled or permuted. Then, again and again, the closest pair left is taken and the one of the
two that is nearer to all others is dropped.

A criterion turns one layer into scores (O,), higher = keep. Criteria live in a registry: ``criteria()`` lists
them, ``register_criterion`` adds one.

Legend: ``O`` filters, ``D`` rows of a factor matrix (I, Kh or Kw), ``R`` rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..decomposition.cp import Factors
from ..utils.errors import InputError

Score = Callable[[Tensor, Factors | None, torch.Generator], Tensor]
"""(weight (O, I, Kh, Kw), its CP factors or None, random generator) -> scores (O,), higher = keep, on the CPU."""


DataScore = Callable[[Tensor, Tensor], Tensor]
"""(covariance (C, C) of channels, weights (rows, C) that read them) -> scores (C,), higher = keep, on the CPU."""


@dataclass(frozen=True)
class Criterion:
    """A named way to score filters.

    Attributes:
        name: in the registry.
        score: a ``Score``; with ``needs_data`` a ``DataScore``.
        needs_factors: it sees only layers that have CP factors.
        needs_data: it scores channels by what they do on calibration images.
    """

    name: str
    score: Callable[..., Tensor]
    needs_factors: bool
    needs_data: bool


_CRITERIA: dict[str, Criterion] = {}
_NEAR = 1e-3  # sin^2 below which the Gram form loses digits and the residual itself is formed
_CHUNK = 1 << 22  # numbers per block of residuals: 32 MB


def register_criterion(
    name: str, needs_factors: bool = False, needs_data: bool = False
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator that adds a criterion, a ``Score`` or with ``needs_data`` a ``DataScore``, under ``name``.

    With ``needs_factors`` it is given the layer's CP factors, and layers that have none (1x1 convolutions and
    the stem) are scored by ``norm`` instead. With ``needs_data`` it can be used with calibration images only.
    """

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if name in _CRITERIA:
            raise ValueError(f"criterion {name!r} is registered already; choose another name")
        _CRITERIA[name] = Criterion(name, function, needs_factors, needs_data)
        return function

    return add


def criteria() -> list[str]:
    """Names of the registered pruning criteria."""
    return sorted(_CRITERIA)


def get_criterion(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        InputError: no such criterion; the message lists those that exist.
    """
    if name not in _CRITERIA:
        raise InputError(f"criterion: expected one of {', '.join(criteria())}, got {name!r}; choose one of them")
    return _CRITERIA[name]


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
    own = torch.diag_embed(present.to(cosines.dtype))  # Q_j^T Q_j: (O, M, M)
    return torch.cat(
        [
            _largest_eigenvalue(own.unsqueeze(0) - block.transpose(2, 3) @ block)
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


def elimination_order(distance: Tensor) -> Tensor:
    """The order in which filters are dropped, redundant ones first; (O,) indices, a permutation.

    Repeats on the filters left: take the closest pair; of the two, drop the one whose summed distance to the
    others left is smaller (the lower index on a tie).

    Args:
        distance: symmetric (O, O).

    Raises:
        InputError: not a square matrix, or NaN in it.
    """
    if distance.ndim != 2 or distance.shape[0] != distance.shape[1] or torch.isnan(distance).any():
        raise InputError(
            f"distance: expected a square matrix without NaN, got {tuple(distance.shape)}; use pabs_distance"
        )
    left = distance.detach().cpu().to(torch.double, copy=True)
    count = len(left)
    if count == 0:
        return torch.empty(0, dtype=torch.long)
    sums = left.sum(dim=1)
    rounding = 1e-12 * float(sums.max())  # sums are updated, not formed anew: what differs by less ties
    left.fill_diagonal_(torch.inf)
    nearest, partner = left.min(dim=1)
    order = []
    for _ in range(count - 1):
        i = int(nearest.argmin())
        j = int(partner[i])
        i, j = min(i, j), max(i, j)
        drop = j if sums[j] < sums[i] - rounding else i
        order.append(drop)
        sums -= torch.where(torch.isinf(left[drop]), 0.0, left[drop])
        left[drop] = torch.inf
        left[:, drop] = torch.inf
        nearest[drop] = torch.inf
        stale = torch.nonzero((partner == drop) & torch.isfinite(nearest))[:, 0]  # rows that lost their nearest
        if len(stale):
            nearest[stale], partner[stale] = left[stale].min(dim=1)
    order += sorted(set(range(count)) - set(order))
    return torch.tensor(order, dtype=torch.long)


def keep_indices(scores: Tensor, count: int) -> Tensor:
    """The ``count`` best-scored indices, sorted; ties go to the lower index."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


@register_criterion("pabs", needs_factors=True)
def pabs(weight: Tensor, factors: Factors | None, generator: torch.Generator) -> Tensor:
    """NORTON's own: the position in the elimination order by PABS (dropped later = higher score)."""
    assert factors is not None
    order = elimination_order(pabs_distance(factors))
    scores = torch.empty(len(order), dtype=torch.double)
    scores[order] = torch.arange(len(order), dtype=torch.double)
    return scores


@register_criterion("pabs_sum", needs_factors=True)
def pabs_sum(weight: Tensor, factors: Factors | None, generator: torch.Generator) -> Tensor:
    """Summed PABS distance to all other filters, without elimination."""
    assert factors is not None
    return pabs_distance(factors).sum(dim=1)


@register_criterion("norm")
def norm(weight: Tensor, factors: Factors | None, generator: torch.Generator) -> Tensor:
    """Euclidean norm of each filter's weights."""
    return weight.detach().cpu().double().flatten(1).norm(dim=1)


@register_criterion("random")
def random(weight: Tensor, factors: Factors | None, generator: torch.Generator) -> Tensor:
    """Uniform random scores: the baseline that a criterion has to beat."""
    return torch.rand(len(weight), dtype=torch.double, generator=generator)


@register_criterion("css", needs_data=True)
def css(covariance: Tensor, readers: Tensor) -> Tensor:
    """Greedy column subset selection, see ``css_curve``. Taken earlier = higher score."""
    order = css_curve(covariance, readers)[0]
    scores = torch.empty(len(order), dtype=torch.double)
    scores[order] = torch.arange(len(order), 0, -1, dtype=torch.double)
    return scores


def css_curve(covariance: Tensor, readers: Tensor) -> tuple[Tensor, Tensor]:
    """Channels from which what the readers compute is best predicted, and the error that is left with so many.

    Each step takes the channel that lowers the readers' error most when all outputs are predicted by least squares
    from the channels taken so far (orthogonal matching; Farahat et al., "Efficient greedy feature selection", 2013).

    With residual covariance R and readers W only ``R`` and ``H = R W^T W R`` are kept; taking channel j lowers the
    error by ``H_jj / R_jj`` and changes both by terms of rank 1.

    Args:
        covariance: of C channels, (C, C).
        readers: weights that read them, (rows, C).

    Returns:
        The order in which channels are taken, (C,), and the readers' squared error with 0, 1, ..., C of them, relative
        to the variance of what they compute, (C + 1,).
    """
    residual = covariance.detach().cpu().double().clone()
    count = len(residual)
    readers = readers.detach().cpu().double()
    # float noise must not look like a direction; channels without variance come last
    residual.diagonal().add_(1e-6 * residual.diagonal().mean().clamp_min(1e-30))
    floor = 1e-9 * float(residual.diagonal().mean())
    energy = readers.T @ readers
    errors = torch.empty(count + 1, dtype=torch.double)
    errors[0] = (residual * energy).sum()
    gains = residual @ energy @ residual  # H
    order = torch.empty(count, dtype=torch.long)
    left = torch.ones(count, dtype=torch.bool)
    for step in range(count):
        gain = torch.where(left, gains.diagonal() / residual.diagonal().clamp_min(floor), -torch.inf)
        chosen = int(gain.argmax())
        order[step], left[chosen] = chosen, False
        errors[step + 1] = errors[step] - gain[chosen].clamp_min(0.0)
        r = residual[chosen] / residual[chosen, chosen].clamp_min(floor)
        column, h = residual[chosen].clone(), gains[chosen].clone()
        gains.addr_(h, r, alpha=-1).addr_(r, h - h[chosen] * r, alpha=-1)
        residual.addr_(column, r, alpha=-1)
    return order, (errors / errors[0].clamp_min(1e-300)).clamp(0.0, 1.0)

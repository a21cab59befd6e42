"""Which filters to keep: the registry of pruning criteria, NORTON's elimination order, and what to compare it with.

NORTON (section III-B): the closest pair of filters that is left is taken, by the distance of ``angles``, and the one of
the two that is nearer to all others is dropped; again and again.

A criterion turns one layer into scores (O,), higher = keep. Criteria live in a registry: ``criteria()`` lists
them, ``register_criterion`` adds one.

Legend: ``O`` filters, ``C`` channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ..decomposition.angles import pabs_distance
from ..decomposition.cp import Factors
from ..utils.errors import InputError

Score = Callable[[Tensor, Factors | None, torch.Generator], Tensor]
"""(weight (O, I, Kh, Kw), its CP factors or None, random generator) -> scores (O,), higher = keep, on the CPU."""

DataScore = Callable[[Tensor, Tensor], Tensor]
"""(covariance (C, C) of channels, weights (rows, C) that read them) -> scores (C,), higher = keep, on the CPU."""


@dataclass(frozen=True)
class Criterion:
    """A named way to score the filters of one layer by its weight.

    Attributes:
        name: in the registry.
        score: see ``Score``.
        needs_factors: it sees only layers that have CP factors.
    """

    name: str
    score: Score
    needs_factors: bool


@dataclass(frozen=True)
class DataCriterion:
    """A named way to score a set of channels by what they do on calibration images.

    Attributes:
        name: in the registry.
        score: see ``DataScore``.
    """

    name: str
    score: DataScore


_CRITERIA: dict[str, Criterion | DataCriterion] = {}


@overload
def register_criterion(
    name: str, needs_factors: bool = False, needs_data: Literal[False] = False
) -> Callable[[Score], Score]: ...
@overload
def register_criterion(
    name: str, needs_factors: bool = False, *, needs_data: Literal[True]
) -> Callable[[DataScore], DataScore]: ...
def register_criterion(name: str, needs_factors: bool = False, needs_data: bool = False) -> Callable[..., Any]:
    """Decorator that adds a criterion, a ``Score`` or with ``needs_data`` a ``DataScore``, under ``name``.

    With ``needs_factors`` it is given the layer's CP factors, and layers that have none (1x1 convolutions and
    the stem) are scored by ``norm`` instead. With ``needs_data`` it can be used with calibration images only.

    Raises:
        ValueError: the name is taken.
    """

    def add(score: Any) -> Any:
        if name in _CRITERIA:
            raise ValueError(f"criterion {name!r} is registered already; choose another name")
        _CRITERIA[name] = DataCriterion(name, score) if needs_data else Criterion(name, score, needs_factors)
        return score

    return add


def criteria() -> list[str]:
    """Names of the registered pruning criteria."""
    return sorted(_CRITERIA)


def get_criterion(name: str) -> Criterion | DataCriterion:
    """The criterion of that name.

    Raises:
        InputError: no such criterion; the message lists those that exist.
    """
    if name not in _CRITERIA:
        raise InputError(f"criterion: expected one of {', '.join(criteria())}, got {name!r}; choose one of them")
    return _CRITERIA[name]


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

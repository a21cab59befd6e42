"""Principal angles against SciPy, their invariances, the elimination order against a slow reference, the registry."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from norton_det.compression import criteria as registry
from norton_det.compression.criteria import (
    Criterion,
    criteria,
    elimination_order,
    get_criterion,
    keep_indices,
)
from norton_det.decomposition import angles
from norton_det.decomposition.angles import pabs_distance, subspace_angles
from norton_det.decomposition.cp import Factors, cp_decompose
from norton_det.utils.errors import InputError


def random_factors(filters: int, inputs: int, rank: int, generator: torch.Generator) -> Factors:
    return Factors(*(torch.randn(filters, d, rank, generator=generator, dtype=torch.double) for d in (inputs, 3, 3)))


def scipy_angles(factor: Tensor) -> np.ndarray:
    """Largest principal angle of every pair, pair by pair."""
    count = len(factor)
    angles = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j:
                angles[i, j] = scipy.linalg.subspace_angles(factor[i].numpy(), factor[j].numpy()).max()
    return angles


def slow_elimination_order(distance: Tensor) -> list[int]:
    """The definition, word by word."""
    left, order = list(range(len(distance))), []
    while len(left) > 1:
        pairs = [(float(distance[i, j]), i, j) for i in left for j in left if i < j]
        _, i, j = min(pairs)
        sums = {k: sum(float(distance[k, other]) for other in left if other != k) for k in (i, j)}
        drop = j if sums[j] < sums[i] else i
        order.append(drop)
        left.remove(drop)
    return order + left


def random_distance(count: int, generator: torch.Generator) -> Tensor:
    half = torch.rand(count, count, generator=generator, dtype=torch.double).triu(1)
    return half + half.T


@pytest.mark.parametrize("rank", range(1, 10))
@pytest.mark.parametrize("rows", [3, 10, 40])
def test_angles_equal_scipy(rows, rank, generator):
    factor = torch.randn(6, rows, rank, generator=generator, dtype=torch.double)
    assert np.allclose(subspace_angles(factor).numpy(), scipy_angles(factor), atol=1e-7)


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-7])
def test_angles_equal_scipy_for_nearly_equal_spaces(distance, generator):
    """Here acos of a cosine, or the Gram form alone, would lose all digits."""
    base = torch.randn(1, 20, 3, generator=generator, dtype=torch.double)
    factor = base + distance * torch.randn(5, 20, 3, generator=generator, dtype=torch.double)
    expected = scipy_angles(factor)
    assert expected.max() > distance
    assert np.allclose(subspace_angles(factor).numpy(), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("rank", [2, 3])
def test_spaces_of_different_dimensions_compare_the_smaller(rank, generator):
    factor = torch.randn(4, 12, rank, generator=generator, dtype=torch.double)
    factor[1, :, -1] = 0
    factor[2, :, -1] = 2 * factor[2, :, 0]
    angles = subspace_angles(factor)
    thin = [factor[0], factor[1, :, :-1], factor[2, :, :-1], factor[3]]
    for i in range(4):
        for j in range(4):
            if i != j:
                expected = scipy.linalg.subspace_angles(thin[i].numpy(), thin[j].numpy()).max()
                assert float(angles[i, j]) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_orthogonal_spaces_are_a_right_angle(rank):
    basis = torch.eye(3 * rank, dtype=torch.double)
    factor = torch.stack([basis[:, i * rank : (i + 1) * rank] for i in range(3)])
    expected = torch.full((3, 3), math.pi / 2, dtype=torch.double).fill_diagonal_(0)
    assert torch.allclose(subspace_angles(factor), expected, atol=1e-12)


def test_orthogonal_filters_are_three_right_angles():
    """The distance is a sum over the modes: pi/2 for each that is orthogonal."""
    eye = torch.eye(3).unsqueeze(2)  # filter i is the i-th unit vector in every mode
    distance = pabs_distance(Factors(eye, eye, eye))
    expected = torch.full((3, 3), 3 * math.pi / 2, dtype=torch.double).fill_diagonal_(0)
    assert torch.allclose(distance, expected, atol=1e-12)
    same = torch.ones(3, 3, 1)
    assert torch.allclose(pabs_distance(Factors(eye, same, same)), expected / 3, atol=1e-7)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_scaled_permuted_and_recombined_components_are_at_zero(rank, generator):
    factor = torch.randn(1, 16, rank, generator=generator, dtype=torch.double)
    mix = torch.randn(rank, rank, generator=generator, dtype=torch.double) + 2 * torch.eye(rank)
    scales = torch.tensor([1e-12, -3.0, 1e9], dtype=torch.double)[:rank]
    variants = torch.cat([factor, factor * scales, factor.flip(2), -factor, factor @ mix])
    assert subspace_angles(variants).max() < 1e-7


def test_angles_ignore_the_scale_even_where_squares_underflow(generator):
    factor = torch.randn(4, 8, 2, generator=generator, dtype=torch.double)
    for scale in (1e-200, 1e200):
        assert torch.allclose(subspace_angles(factor * scale), subspace_angles(factor), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3, 9])
def test_distance_is_symmetric_and_bounded(rank, generator):
    distance = pabs_distance(random_factors(12, 30, rank, generator))
    assert torch.equal(distance, distance.T)
    assert (distance.diagonal() == 0).all()
    assert distance.min() >= 0 and distance.max() <= 3 * math.pi / 2


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_equal_and_zero_filters_give_no_nan(rank, generator):
    weight = torch.randn(6, 8, 3, 3, generator=generator)
    weight[1:4] = weight[0]
    weight[5] = 0
    distance = pabs_distance(cp_decompose(weight, rank))
    assert torch.isfinite(distance).all()
    assert distance[:4, :4].max() < 1e-5  # float32 factors
    assert (distance[5] == 0).all()  # a zero filter adds nothing to any other
    assert distance[0, 4] > 0.1


def test_blocks_do_not_change_the_angles(generator, monkeypatch):
    factor = torch.randn(1, 10, 3, generator=generator, dtype=torch.double)
    factor = factor + 0.01 * torch.randn(9, 10, 3, generator=generator, dtype=torch.double)
    whole = subspace_angles(factor)
    monkeypatch.setattr(angles, "_CHUNK", 100)
    assert torch.allclose(subspace_angles(factor), whole, atol=1e-14)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 40])
def test_elimination_order_follows_the_definition(count, generator):
    for _ in range(5):
        distance = random_distance(count, generator)
        order = elimination_order(distance)
        assert order.tolist() == slow_elimination_order(distance)
        assert sorted(order.tolist()) == list(range(count))


def test_elimination_order_follows_the_definition_on_ties(generator):
    """Whole numbers, so that sums are exact and ties are real."""
    for _ in range(20):
        half = torch.randint(0, 4, (15, 15), generator=generator).double().triu(1)
        distance = half + half.T
        assert elimination_order(distance).tolist() == slow_elimination_order(distance)


def test_elimination_order_by_hand():
    """Filters at 0, 1, 10, 12 on a line. Sums: 23, 21, 19, 21. Pair (0, 1): 1 is nearer to all, so it goes; of (2, 3),
    with sums 12 and 14 then, 2 goes; of the last two, the first."""
    place = torch.tensor([0.0, 1.0, 10.0, 12.0])
    distance = (place[:, None] - place[None]).abs()
    assert elimination_order(distance).tolist() == [1, 2, 0, 3]


def test_elimination_order_leaves_its_input(generator):
    distance = random_distance(8, generator)
    before = distance.clone()
    elimination_order(distance)
    assert torch.equal(distance, before)


@pytest.mark.parametrize("distance", [torch.zeros(2, 3), torch.zeros(3), torch.full((2, 2), torch.nan)])
def test_elimination_order_refuses_what_is_no_distance(distance):
    with pytest.raises(InputError, match="expected a square matrix without NaN"):
        elimination_order(distance)


def test_redundant_filters_go_first(generator):
    """The purpose of the criterion: of five copies four are dropped before anything else."""
    weight = torch.randn(10, 12, 3, 3, generator=generator)
    copies = [2, 4, 5, 7, 9]
    weight[copies] = weight[copies[0]].clone()
    order = elimination_order(pabs_distance(cp_decompose(weight, 1))).tolist()
    assert set(order[:4]) < set(copies)


def test_keep_indices_are_sorted_and_ties_go_to_the_lower():
    scores = torch.tensor([1.0, 5.0, 5.0, 2.0, 5.0])
    assert keep_indices(scores, 2).tolist() == [1, 2]
    assert keep_indices(scores, 4).tolist() == [1, 2, 3, 4]
    assert keep_indices(scores, 0).tolist() == []


BY_WEIGHT = [name for name in criteria() if isinstance(get_criterion(name), Criterion)]  # css: below


@pytest.mark.parametrize("name", BY_WEIGHT)
def test_every_criterion_scores_and_keeps_all(name, generator):
    weight = torch.randn(9, 4, 3, 3, generator=generator)
    criterion = get_criterion(name)
    factors = cp_decompose(weight, 1) if criterion.needs_factors else None
    scores = criterion.score(weight, factors, torch.Generator().manual_seed(1))
    again = criterion.score(weight, factors, torch.Generator().manual_seed(1))
    assert scores.shape == (9,) and torch.isfinite(scores).all()
    assert torch.equal(scores, again)
    assert keep_indices(scores, 9).tolist() == list(range(9))
    assert len(set(keep_indices(scores, 4).tolist())) == 4


def test_pabs_keeps_what_is_eliminated_last(generator):
    """A score is not an order: the kept set has to be the tail of the elimination order."""
    weight = torch.randn(20, 6, 3, 3, generator=generator)
    factors = cp_decompose(weight, 1)
    order = elimination_order(pabs_distance(factors)).tolist()
    scores = get_criterion("pabs").score(weight, factors, generator)
    for count in (1, 7, 19):
        assert keep_indices(scores, count).tolist() == sorted(order[-count:])


def test_norm_and_pabs_sum_by_definition(generator):
    weight = torch.randn(5, 3, 3, 3, generator=generator)
    factors = cp_decompose(weight, 2)
    expected = torch.tensor([float(filter_.square().sum().sqrt()) for filter_ in weight], dtype=torch.double)
    assert torch.allclose(get_criterion("norm").score(weight, None, generator), expected)
    sums = get_criterion("pabs_sum").score(weight, factors, generator)
    assert torch.allclose(sums, pabs_distance(factors).sum(0))


def test_registry_lists_refuses_and_accepts(monkeypatch):
    assert {"pabs", "pabs_sum", "norm", "random"} <= set(criteria())
    with pytest.raises(InputError, match=r"criterion: expected one of .*norm, pabs, .*got 'nrom'"):
        get_criterion("nrom")
    monkeypatch.setattr(registry, "_CRITERIA", dict(registry._CRITERIA))

    @registry.register_criterion("first")
    def first(weight, factors, generator):
        return -torch.arange(len(weight), dtype=torch.double)

    assert "first" in criteria() and get_criterion("first").score is first
    with pytest.raises(ValueError, match="registered already"):
        registry.register_criterion("first")(first)


def naive_css(covariance, readers, count):
    """Greedy by definition: try every channel, predict all outputs by least squares from those chosen."""
    chosen = []
    total = readers @ covariance @ readers.T
    for _ in range(count):
        errors = {}
        for candidate in set(range(len(covariance))) - set(chosen):
            index = [*chosen, candidate]
            inside = covariance[index][:, index]
            across = readers @ covariance[:, index]
            errors[candidate] = float((total - across @ torch.linalg.pinv(inside) @ across.T).trace())
        chosen.append(min(errors, key=errors.get))
    return chosen


def test_css_is_the_greedy_choice(generator):
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.double)
    covariance, readers = mixing @ mixing.T, torch.randn(5, 12, generator=generator, dtype=torch.double)
    scores = registry.css(covariance, readers)
    assert scores.argsort(descending=True)[:5].tolist() == naive_css(covariance, readers, 5)
    assert sorted(scores.tolist()) == list(range(1, 13))


def test_css_drops_copies_and_what_nobody_reads(generator):
    """A copy of a channel, a channel without variance, and one with no reader come last."""
    values = torch.randn(500, 6, generator=generator, dtype=torch.double)
    values[:, 3] = values[:, 0]
    values[:, 4] = 0
    readers = torch.randn(4, 6, generator=generator, dtype=torch.double)
    readers[:, 5] = 0
    scores = registry.css(torch.cov(values.T), readers)
    assert set(scores.argsort()[:3].tolist()) & {0, 3} and {4, 5} <= set(scores.argsort()[:3].tolist())


def test_css_does_not_depend_on_scale(generator):
    """A channel scaled up, its readers scaled down: the same network, the same choice."""
    mixing = torch.randn(8, 8, generator=generator, dtype=torch.double)
    covariance, readers = mixing @ mixing.T, torch.randn(5, 8, generator=generator, dtype=torch.double)
    scale = torch.logspace(-1, 1, 8, dtype=torch.double)
    scaled = registry.css(covariance * scale * scale[:, None], readers / scale)
    first = scaled.argsort(descending=True)[:5].tolist()
    assert first == registry.css(covariance, readers).argsort(descending=True)[:5].tolist()


def test_css_without_any_variance():
    assert registry.css(torch.zeros(3, 3), torch.zeros(2, 3)).isfinite().all()

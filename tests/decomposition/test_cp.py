"""CP decomposition: planted ranks, TensorLy as oracle, degenerate filters, scales and types."""

import itertools

import numpy as np
import pytest
import torch
from tensorly.decomposition import parafac
from torch import Tensor

from norton_det.decomposition import als
from norton_det.decomposition.cp import Factors, cp_decompose, cp_decompose_layers, khatri_rao, nmse, reconstruct
from norton_det.utils.errors import InputError


def random_factors(filters: int, inputs: int, kh: int, kw: int, rank: int, generator: torch.Generator) -> Factors:
    return Factors(*(torch.randn(filters, d, rank, generator=generator, dtype=torch.double) for d in (inputs, kh, kw)))


def relative_error(weight: Tensor, factors: Factors) -> Tensor:
    """Relative error of each filter, (O,)."""
    weight = weight.double()
    difference = weight - reconstruct(factors.to(torch.float64))
    return difference.flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)


def filter_nmse(weight: np.ndarray, parts: list[np.ndarray]) -> float:
    difference = weight - np.einsum("ir,hr,wr->ihw", *parts)
    return float((difference**2).sum() / (weight**2).sum())


def test_khatri_rao_is_the_columnwise_kronecker_product(generator):
    b, c = (torch.randn(2, d, 3, generator=generator) for d in (4, 5))
    product = khatri_rao(b, c)
    for f, r in itertools.product(range(2), range(3)):
        assert torch.allclose(product[f, :, r], torch.kron(b[f, :, r], c[f, :, r]))


def test_reconstruct_follows_the_definition(generator):
    factors = random_factors(3, 4, 2, 5, 3, generator)
    expected = torch.einsum("oir,ohr,owr->oihw", factors.a, factors.b, factors.c)
    assert torch.allclose(reconstruct(factors), expected)


def test_nmse_by_hand():
    weight = torch.zeros(1, 2, 1, 1)
    weight[0, :, 0, 0] = torch.tensor([3.0, 4.0])  # squared norm 25
    factors = Factors(torch.tensor([[[3.0], [0.0]]]), torch.ones(1, 1, 1), torch.ones(1, 1, 1))
    assert nmse(weight, factors) == pytest.approx(16 / 25)
    assert nmse(torch.zeros_like(weight), factors) == 0.0


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("inputs", [3, 16, 64])
def test_planted_rank_is_recovered(inputs, rank, generator):
    weight = reconstruct(random_factors(12, inputs, 3, 3, rank, generator))
    assert relative_error(weight, cp_decompose(weight, rank)).max() < 1e-5


def test_planted_components_are_recovered(generator):
    """For R <= 3 the CP decomposition is unique up to order and scale: the columns themselves come back."""
    planted = random_factors(6, 8, 3, 3, 2, generator)
    found = cp_decompose(reconstruct(planted), 2)
    for part, other in ((planted.a, found.a), (planted.b, found.b), (planted.c, found.c)):
        cosines = torch.nn.functional.normalize(part, dim=1).transpose(1, 2) @ torch.nn.functional.normalize(
            other, dim=1
        )
        assert torch.allclose(cosines.abs().amax(dim=2), torch.ones(6, 2, dtype=torch.double), atol=1e-8)


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (3, 1), (3, 3), (2, 5), (5, 3)])
@pytest.mark.parametrize("inputs", [1, 4, 20])
def test_full_rank_reproduces_any_kernel(kernel, inputs, generator):
    weight = torch.randn(5, inputs, *kernel, generator=generator)
    factors = cp_decompose(weight, kernel[0] * kernel[1])
    assert relative_error(weight, factors).max() < 1e-5
    assert factors.a.shape == (5, inputs, kernel[0] * kernel[1])


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_error_falls_monotonically_with_iterations(rank, generator):
    weight = torch.randn(10, 12, 3, 3, generator=generator)
    errors = torch.stack(
        [
            relative_error(weight, cp_decompose(weight, rank, starts=1, iterations=steps, tolerance=0.0))
            for steps in (0, 1, 2, 3, 5, 8, 12, 20, 40, 80)
        ]
    )
    assert (errors.diff(dim=0) <= 1e-6).all()  # float32 factors
    assert errors[-1].mean() < errors[0].mean() - 1e-3


def test_error_falls_with_rank_and_reaches_zero(generator):
    weight = torch.randn(8, 12, 3, 3, generator=generator)
    errors = [nmse(weight, cp_decompose(weight, rank)) for rank in range(1, 10)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-10


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_worse_than_tensorly_best_of_three(rank, generator):
    weight = torch.randn(6, 8, 3, 3, generator=generator, dtype=torch.double)
    factors = cp_decompose(weight, rank)
    ours = [nmse(weight[o : o + 1], factors.filters(torch.tensor([o]))) for o in range(len(weight))]
    for one, tensor in zip(ours, weight.numpy(), strict=True):
        runs = [parafac(tensor, rank, init="random", random_state=seed, normalize_factors=False) for seed in range(3)]
        best = min(filter_nmse(tensor, [run.factors[0] * run.weights, *run.factors[1:]]) for run in runs)
        assert one <= best + 1e-6


def test_rank_one_is_the_best_one_by_exhaustive_search(generator):
    """For 2 x 2 kernels the best rank 1 is a search over two angles, independent of any solver."""
    weight = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.double)
    angle = torch.linspace(0, torch.pi, 721, dtype=torch.double)
    unit = torch.stack([angle.cos(), angle.sin()])
    energy = torch.einsum("oihw,hp,wq->oipq", weight, unit, unit).square().sum(1).flatten(1).amax(1)
    best = (1 - energy / weight.flatten(1).square().sum(1)).sqrt()
    assert (relative_error(weight, cp_decompose(weight, 1)) <= best + 1e-6).all()


@pytest.mark.parametrize("rank", [1, 2, 9])
def test_zero_filters_give_zero_factors(rank, generator):
    weight = torch.randn(4, 6, 3, 3, generator=generator)
    weight[1] = 0
    factors = cp_decompose(weight, rank)
    for part in (factors.a, factors.b, factors.c):
        assert torch.isfinite(part).all()
        assert (part[1] == 0).all()
        assert part[0].abs().max() > 0
    assert nmse(torch.zeros(2, 6, 3, 3), cp_decompose(torch.zeros(2, 6, 3, 3), rank)) == 0.0


@pytest.mark.parametrize("rank", [1, 2, 3, 9])
def test_constant_filters_are_exact(rank):
    weight = torch.tensor([0.5, -2.0, 1e-6])[:, None, None, None].expand(3, 6, 3, 3)
    factors = cp_decompose(weight, rank)
    assert relative_error(weight, factors).max() < 1e-6
    assert all(torch.isfinite(part).all() for part in (factors.a, factors.b, factors.c))


@pytest.mark.parametrize("rank", [1, 3])
def test_equal_filters_get_equal_factors_whatever_stands_beside_them(rank, generator):
    weight = torch.randn(7, 6, 3, 3, generator=generator)
    weight[5] = weight[2]
    factors = cp_decompose(weight, rank)
    alone = cp_decompose(weight[2:3], rank)
    for part, single in ((factors.a, alone.a), (factors.b, alone.b), (factors.c, alone.c)):
        assert torch.allclose(part[5], part[2], atol=1e-6)
        assert torch.allclose(part[2], single[0], atol=1e-5)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize("rank", [1, 2])
def test_scale_changes_nothing_but_the_scale(scale, rank, generator):
    weight = torch.randn(6, 10, 3, 3, generator=generator)
    plain, scaled = cp_decompose(weight, rank), cp_decompose(weight * scale, rank)
    assert torch.allclose(reconstruct(plain), reconstruct(scaled.to(torch.float64)).float() / scale, atol=1e-4)
    assert nmse(weight * scale, scaled) == pytest.approx(nmse(weight, plain), rel=1e-5)


def test_extreme_float64_scales(generator):
    weight = torch.randn(3, 4, 3, 3, generator=generator, dtype=torch.double)
    expected = nmse(weight, cp_decompose(weight, 1))
    for scale in (1e-250, 1e250):
        assert nmse(weight * scale, cp_decompose(weight * scale, 1)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-6), (torch.float64, 1e-9)],
)
def test_weight_dtype_is_kept(dtype, tolerance, generator):
    weight = reconstruct(random_factors(5, 6, 3, 3, 1, generator)).to(torch.float64)
    factors = cp_decompose(weight.to(dtype), 1)
    assert {factors.a.dtype, factors.b.dtype, factors.c.dtype} == {dtype}
    assert relative_error(weight, factors).max() < 3 * tolerance


def test_columns_are_balanced_and_ordered(generator):
    factors = cp_decompose(torch.randn(5, 8, 3, 3, generator=generator, dtype=torch.double), 3)
    norms = [part.norm(dim=1) for part in (factors.a, factors.b, factors.c)]
    assert torch.allclose(norms[0], norms[1]) and torch.allclose(norms[0], norms[2])
    assert (norms[0].diff(dim=1) <= 1e-12).all()
    for part in (factors.b, factors.c):  # signs: the largest entry is positive
        assert (part.gather(1, part.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_no_component_outgrows_the_filter():
    """x*x*y + x*y*x + y*x*x has rank 3 and border rank 2: its best rank 2 does not exist, components run away."""
    x, y = torch.eye(3, dtype=torch.double)[:2]
    terms = ((x, x, y), (x, y, x), (y, x, x))
    weight = torch.stack([torch.einsum("i,h,w->ihw", *term) for term in terms]).sum(0, keepdim=True)
    factors = cp_decompose(weight, 2, iterations=2000, tolerance=0.0)
    size = factors.a.norm(dim=1) * factors.b.norm(dim=1) * factors.c.norm(dim=1)
    assert size.max() <= als.MAX_COMPONENT_NORM * weight.norm() * (1 + 1e-9)
    assert nmse(weight, factors) < 0.01  # the infimum is 0


def test_deterministic_and_silent_on_the_global_state(generator):
    weight = torch.randn(20, 8, 3, 3, generator=generator)
    before, state = weight.clone(), torch.get_rng_state()
    first, second = cp_decompose(weight, 2), cp_decompose(weight, 2)
    assert all(torch.equal(x, y) for x, y in zip(vars(first).values(), vars(second).values(), strict=True))
    assert torch.equal(weight, before) and torch.equal(torch.get_rng_state(), state)


def test_layers_of_any_widths_kernels_and_ranks_together(generator):
    shapes, ranks = [(4, 2, 3, 3), (6, 30, 3, 3), (3, 5, 1, 3), (2, 9, 3, 3)], [2, 2, 1, 9]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    finished: list[int] = []
    together = cp_decompose_layers(weights, ranks, progress=finished.append)
    assert sum(finished) == 15 and min(finished) >= 0
    for weight, rank, factors in zip(weights, ranks, together, strict=True):
        assert reconstruct(factors).shape == weight.shape
        assert nmse(weight, factors) == pytest.approx(nmse(weight, cp_decompose(weight, rank)), abs=1e-6)


def test_chunks_do_not_change_the_result(generator, monkeypatch):
    weight = torch.randn(30, 8, 3, 3, generator=generator)
    whole = cp_decompose(weight, 2)
    monkeypatch.setattr(als, "_CHUNK", 6 * 144 * 7)  # 7 filters at a time
    assert torch.allclose(reconstruct(whole), reconstruct(cp_decompose(weight, 2)), atol=1e-4)


def test_factors_pick_filters_and_inputs(generator):
    weight = torch.randn(5, 6, 3, 3, generator=generator)
    factors, outputs, inputs = cp_decompose(weight, 2), torch.tensor([0, 3]), torch.tensor([1, 2, 5])
    picked = factors.filters(outputs).inputs(inputs)
    assert picked.rank == 2
    assert torch.allclose(reconstruct(picked), reconstruct(factors)[outputs][:, inputs])


@pytest.mark.parametrize(
    ("weight", "rank", "options", "message"),
    [
        (torch.ones(2, 3, 3), 1, {}, "weight 0: expected a float weight"),
        (torch.ones(2, 2, 3, 3, dtype=torch.int), 1, {}, "torch.int32; pass a Conv2d weight"),
        (torch.ones(2, 2, 3, 3), 10, {}, "rank: expected 1 to 9"),
        (torch.ones(2, 2, 3, 3), 0, {}, "rank: expected 1 to 9"),
        (torch.full((2, 2, 3, 3), torch.nan), 1, {}, "NaN or infinity"),
        (torch.full((2, 2, 3, 3), torch.inf), 1, {"names": ["layer1.0.conv2"]}, "layer1.0.conv2: expected finite"),
        (torch.ones(2, 0, 3, 3), 1, {}, "at least one filter"),
        (torch.ones(2, 2, 3, 3), 1, {"starts": 0}, "starts >= 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(weight, rank, options, message):
    with pytest.raises(InputError, match=message) as caught:
        cp_decompose(weight, rank, **options)
    assert "\n" not in str(caught.value)


def test_real_convolutions_nmse_falls_with_rank(real_weights):
    """All sixteen 3x3 convolutions of a trained ResNet-50, 12 filters of each."""
    weights = [weight[:12] for weight in real_weights.values() if weight.ndim == 4 and weight.shape[2] == 3]
    assert len(weights) == 16
    errors = []
    for rank in (1, 2, 3):
        layers = cp_decompose_layers(weights, [rank] * len(weights))
        errors.append([nmse(weight, factors) for weight, factors in zip(weights, layers, strict=True)])
    assert np.isfinite(errors).all()
    assert (np.diff(errors, axis=0) < -0.01).all()
    assert 0.3 < np.mean(errors[0]) < 0.9  # the paper's VGG: 0.63 at R = 1; filters of a trained net are not low rank

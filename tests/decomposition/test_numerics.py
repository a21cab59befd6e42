"""Properties of decomposition, distances, pruning and factored layers on degenerate filters, scales and types.

``NORTON_DET_EXAMPLES=thorough`` tries ten times as many examples, other ones each time.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from norton_det.compression.criteria import elimination_order, keep_indices
from norton_det.compression.prune import cut, select_channels
from norton_det.compression.resnet import compress_detector_state
from norton_det.decomposition.angles import pabs_distance
from norton_det.decomposition.cp import Factors, cp_decompose, cp_decompose_layers, nmse, reconstruct
from norton_det.models.layers import CPConv2d, LowRankLinear
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

EPSILON = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-7, torch.float64: 1e-12}
EXTREME = {torch.float16: (1e-4, 1e3), torch.bfloat16: (1e-30, 1e30), torch.float32: (1e-30, 1e30)}
KINDS = ("random", "zero", "constant", "duplicate", "orthogonal", "tiny", "huge")
KERNELS = ((1, 1), (3, 1), (1, 3), (2, 2), (3, 3))
SEEDS = st.integers(0, 2**31)
pytestmark = pytest.mark.promise("properties of decomposition, distances and pruning")


def examples(count: int) -> settings:
    """So many of them, and as many times more as the profile says."""
    return settings(max_examples=count * settings.default.max_examples // 100)


def make_layer(kinds: list[str], inputs: int, kernel: tuple[int, int], dtype: torch.dtype, seed: int) -> Tensor:
    """A weight (O, I, Kh, Kw) whose filters are of these kinds."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(kinds), inputs, *kernel, generator=generator, dtype=torch.double)
    tiny, huge = EXTREME.get(dtype, (1e-200, 1e200))
    for index, kind in enumerate(kinds):
        if kind == "orthogonal":  # one number each, at another place
            weight[index] = 0
            weight[index].view(-1)[index % weight[index].numel()] = 1.0
        elif kind == "duplicate":
            weight[index] = weight[max(0, index - 1)]
        else:
            factor = {"random": 1.0, "constant": 1.0, "zero": 0.0, "tiny": tiny, "huge": huge}[kind]
            weight[index] = factor * (torch.ones_like(weight[index]) if kind == "constant" else weight[index])
    return weight.to(dtype)


@st.composite
def layers(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = tuple(EPSILON), kernels=KERNELS) -> tuple[Tensor, int]:
    """A degenerate layer and a rank for it."""
    kernel = draw(st.sampled_from(kernels))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    weight = make_layer(kinds, draw(st.sampled_from((1, 2, 5, 12))), kernel, draw(st.sampled_from(dtypes)), draw(SEEDS))
    largest = kernel[0] * kernel[1]
    return weight, draw(st.integers(1, largest) if largest <= 9 else st.sampled_from((1, 2, largest)))


def filter_errors(weight: Tensor, factors: Factors) -> list[float]:
    return [nmse(weight[o : o + 1], factors.filters(torch.tensor([o]))) for o in range(len(weight))]


def rounding(weight: Tensor, rank: int) -> float:
    """What the weight's type may add to a relative error: components may be longer than the filter and cancel."""
    return min(1.0, 30 * math.sqrt(rank) * 3 * EPSILON[weight.dtype])


@examples(120)
@given(layers())
def test_errors_are_relative_and_factors_finite_and_balanced(layer):
    weight, rank = layer
    factors = cp_decompose(weight, rank)
    parts = [part.double() for part in (factors.a, factors.b, factors.c)]
    assert all(part.isfinite().all() for part in parts)
    largest = weight.shape[2] * weight.shape[3]
    for error in filter_errors(weight, factors):
        assert 0 <= error <= (1 + rounding(weight, rank) if rank < largest else rounding(weight, rank) ** 2)
    norms = [part.norm(dim=1) for part in parts]
    for norm in norms[1:]:
        assert torch.allclose(
            norm, norms[0], rtol=10 * EPSILON[weight.dtype], atol=1e-7 if weight.dtype.itemsize == 2 else 0
        )
    assert all((norms[0].diff(dim=1) <= 10 * EPSILON[weight.dtype] * norms[0][:, :1]).flatten())
    assert all(not part[weight.flatten(1).abs().amax(1) == 0].any() for part in parts)


@examples(10)
@given(layers(kernels=((7, 7), (5, 3))))
def test_large_kernels(layer):
    weight, rank = layer
    factors = cp_decompose(weight, rank)
    assert all(error <= 1 + rounding(weight, rank) for error in filter_errors(weight, factors))


@examples(80)
@given(layers((torch.float32, torch.float64)))
def test_a_higher_rank_is_not_worse(layer):
    weight, rank = layer
    lower = max(1, rank - 1)
    errors = [filter_errors(weight, cp_decompose(weight, each)) for each in (lower, rank)]
    for less, more in zip(*errors, strict=True):
        assert more <= less + 1e-6


@examples(40)
@given(layers((torch.float32,)), st.sampled_from((1e-30, 1e-12, 1e12, 1e30)))
def test_scale_does_not_change_the_relative_error(layer, scale):
    weight = layer[0] / layer[0].double().flatten(1).abs().amax(1).clamp_min(1e-300)[:, None, None, None].float()
    weight = weight.nan_to_num(0.0)
    plain, scaled = (filter_errors(w, cp_decompose(w, layer[1])) for w in (weight, weight * scale))
    assert plain == pytest.approx(scaled, rel=1e-4, abs=1e-6)


@examples(30)
@given(layers((torch.float64,)), st.randoms())
def test_filters_in_another_order_give_factors_in_that_order(layer, shuffler):
    weight, rank = layer
    order = list(range(len(weight)))
    shuffler.shuffle(order)
    factors = cp_decompose(weight, rank)
    shuffled = cp_decompose(weight[order], rank)
    expected, found = (
        filter_errors(weight[order], factors.filters(torch.tensor(order))),
        filter_errors(weight[order], shuffled),
    )
    assert found == pytest.approx(expected, abs=1e-9)


@examples(40)
@given(st.sampled_from((1, 3, 8)), st.sampled_from(((3, 1), (3, 3), (2, 4))), st.sampled_from((1, 2)), SEEDS)
def test_planted_rank_leaves_no_error(inputs, kernel, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    planted = Factors(*(torch.randn(3, d, rank, generator=generator, dtype=torch.double) for d in (inputs, *kernel)))
    weight = reconstruct(planted)
    assert max(filter_errors(weight, cp_decompose(weight, rank))) < 1e-9


@examples(30)
@given(layers(), st.sampled_from((math.nan, math.inf, -math.inf)), SEEDS)
def test_one_number_that_is_not_finite_names_its_layer(layer, value, seed):
    weight, rank = layer
    spoiled = weight.clone()
    spoiled.view(-1)[seed % weight.numel()] = value
    with pytest.raises(InputError, match=r"^layer3\.1\.conv2: expected finite weights") as caught:
        cp_decompose_layers([weight, spoiled], [rank, rank], names=["layer3.0.conv2", "layer3.1.conv2"])
    assert "\n" not in str(caught.value)


@examples(60)
@given(layers())
def test_distances(layer):
    weight, rank = layer
    factors = cp_decompose(weight, rank)
    distance = pabs_distance(factors)
    assert not distance.isnan().any() and torch.equal(distance, distance.T)
    assert (distance.diagonal() == 0).all() and distance.min() >= 0 and distance.max() <= 3 * math.pi / 2 + 1e-12
    index = torch.arange(len(weight)).repeat(2)
    twice = pabs_distance(factors.filters(index))
    assert twice[: len(weight), len(weight) :].diagonal().abs().max() < 1e-6
    order = elimination_order(distance)
    assert sorted(order.tolist()) == list(range(len(weight)))


@examples(100)
@given(st.integers(0, 12), st.sampled_from((1, 3, 1000)), SEEDS)
def test_elimination_is_a_permutation_also_with_ties(count, values, seed):
    generator = torch.Generator().manual_seed(seed)
    distance = torch.randint(values, (count, count), generator=generator).double()
    order = elimination_order(distance + distance.T)
    assert sorted(order.tolist()) == list(range(count))
    scores = torch.randint(values, (count,), generator=generator).double()
    for keep in range(count + 1):
        kept = keep_indices(scores, keep).tolist()
        assert len(set(kept)) == keep and kept == sorted(kept)
        left = [scores[index] for index in range(count) if index not in kept]
        assert not left or not kept or max(left) <= min(scores[kept])


@examples(4)
@given(st.lists(st.floats(0, 0.98), min_size=19, max_size=19), SEEDS)
def test_pruning_keeps_the_stated_widths(ratios, seed):
    spec = CompressionSpec((0.0, *ratios), None)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in NortonResNet(CompressionSpec.dense(), 2).state_dict().items()}
        expected = {name: tensor.shape for name, tensor in NortonResNet(spec, 2).state_dict().items()}
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    kept = select_channels(state, {}, spec, "random", seed)
    assert all(index.tolist() == sorted(set(index.tolist())) for index in kept.values())
    assert {name: tensor.shape for name, tensor in cut(state, {}, kept, spec).items()} == expected


@examples(60)
@given(
    layers(), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.tuples(st.integers(0, 3), st.integers(0, 3)), SEEDS
)
def test_layer_and_deploy_form_are_the_convolution_by_their_weight(layer, stride, padding, seed):
    weight, rank = layer
    generator = torch.Generator().manual_seed(seed)
    scale = weight.double().flatten(1).abs().amax(1).clamp_min(1e-300)[:, None, None, None]
    weight = (weight.double() / scale).to(weight.dtype)
    factors = cp_decompose(weight, rank)
    module = CPConv2d.from_factors(factors, stride, padding, torch.ones(len(weight), dtype=weight.dtype))
    image = torch.randn(2, weight.shape[1], 7, 6, generator=generator).to(weight.dtype)
    dense = reconstruct(factors.to(torch.double))
    expected = F.conv2d(image.double(), dense, torch.ones(len(weight), dtype=torch.double), stride, padding)
    sizes = [part.double().abs() for part in (factors.a, factors.b, factors.c)]
    absolute = F.conv2d(image.double().abs(), reconstruct(Factors(*sizes)), stride=stride, padding=padding) + 1
    with torch.no_grad():
        for form in (module, module.fuse()):
            found = form(image)
            assert found.dtype == weight.dtype
            assert ((found.double() - expected).abs() <= 20 * EPSILON[weight.dtype] * absolute).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_detectors_that_are_not_finite_are_refused_by_name(value):
    with torch.device("meta"):
        names = NortonResNet(CompressionSpec.dense(), 0).state_dict()
    state = {f"backbone.body.{name}": torch.zeros(()).expand(tensor.shape) for name, tensor in names.items()}
    state["roi_heads.box_head.fc6.weight"] = torch.tensor([[1.0, value]])
    with pytest.raises(InputError, match=r"roi_heads\.box_head\.fc6\.weight: expected finite weights"):
        compress_detector_state(state, CompressionSpec.parse(None, "[0.]+[0.5]*19"))
    linear = torch.nn.Linear(4, 3)
    linear.weight.data[1, 2] = value
    with pytest.raises(InputError, match="linear: expected finite weights"):
        LowRankLinear.from_linear(linear, 2)

"""Rank and ratios are read off the shapes of a network and give the same network again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from norton_det.models.architecture import ARCHITECTURES
from norton_det.models.presets import PRESETS
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.models.spec_from_state import shortest_ratio, spec_from_state
from norton_det.utils.errors import InputError


def shapes(spec: CompressionSpec) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return NortonResNet(spec).state_dict()


@pytest.mark.parametrize("limit", [64, 128, 256, 512, 1024, 2048])
def test_every_width_has_a_ratio(limit):
    for width in range(1, limit + 1):
        ratio = shortest_ratio(limit, width)
        assert 0 <= ratio < 1 and int(limit * (1 - ratio)) == width
    assert shortest_ratio(limit, limit) == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recognised(name, arch):
    preset = CompressionSpec.preset(name, arch)
    assert spec_from_state(shapes(preset)) == preset  # name, rank and ratios as published


@settings(max_examples=8, deadline=None)
@given(
    ratios=st.lists(st.floats(0, 0.98), min_size=20, max_size=20),
    rank=st.none() | st.integers(1, 9) | st.lists(st.integers(1, 9), min_size=16, max_size=16),
)
def test_any_spec_comes_back(ratios, rank):
    spec = CompressionSpec.parse(rank, ratios)
    assert spec_from_state(shapes(spec)).same_network(spec)


def test_blocks_may_stay_dense_beside_others():
    spec = CompressionSpec.parse("[1]*3+[0]*4+[2]*9", "[0.]+[0.5]*19")
    found = spec_from_state(shapes(spec))
    assert found.same_network(spec) and found.ranks == (1,) * 3 + (None,) * 4 + (2,) * 9
    with pytest.raises(InputError, match="the file says 2, its tensors have 1, 2, none"):
        spec_from_state(shapes(spec), 2)


def test_stated_ratios_are_kept_and_the_surplus_ignored():
    spec = CompressionSpec.parse(2, "[0.]+[0.101]*19")
    found = spec_from_state(shapes(spec), 2, "[0.]+[0.101]*99")
    assert found.ratios == spec.ratios and found.rank == 2
    assert spec_from_state(shapes(spec), 2).ratios != spec.ratios  # others give the same widths


def test_stated_rank_and_ratios_have_to_agree():
    state = shapes(CompressionSpec.preset("norton-64"))
    with pytest.raises(InputError, match=r"rank: the file says 2, its tensors have 1"):
        spec_from_state(state, 2)
    with pytest.raises(InputError, match=r"\[0\]\+\[0\.45\]\*19 leaves 140 filters in layer1\.0\.conv3.* has 184"):
        spec_from_state(state, 1, "[0.]+[0.45]*19")
    with pytest.raises(InputError, match="compress_rate: expected a list"):
        spec_from_state(state, 1, "__import__('os')")
    with pytest.raises(InputError, match=r"expected 20 .* got 5"):
        spec_from_state(state, 1, "[0.]*5")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer1.0.conv1.weight": None}, r"layer1\.0\.conv1\.weight: expected among the tensors"),
        ({"conv1.weight": (96, 3, 7, 7)}, r"expected 1 to 64 filters .* got shape \(96, 3, 7, 7\)"),
        ({"layer4.0.conv3.weight": (1024, 512, 1, 1)}, "expected 2048 filters, got 1024"),
        ({"layer4.3.conv1.weight": (512, 2048, 1, 1)}, r"got \(3, 4, 6, 4\)"),
        ({"layer1.0.conv2.pointwise.weight": (64, 64, 1, 1)}, "a dense weight or CP factors, got both"),
        ({"layer1.0.conv2.weight": None}, r"layer1\.0\.conv2: expected a dense weight or CP factors, got neither"),
        (
            {"layer1.0.conv2.weight": None, "layer1.0.conv2.pointwise.weight": (65, 64, 1, 1)},
            "expected rank . 64 rows",
        ),
        ({"layer1.0.conv2.weight": None, "layer1.0.conv2.pointwise.weight": ()}, "expected rank . 64 rows"),
    ],
)
def test_other_shapes_are_refused(change, told):
    state = shapes(CompressionSpec.dense())
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.empty(shape, device="meta")
    with pytest.raises(InputError, match=told):
        spec_from_state(state)


def test_other_networks_are_named():
    from torchvision import models

    with torch.device("meta"):
        basic = models.ResNet(models.resnet.BasicBlock, [1, 2, 2, 2])
        wide, grouped = models.wide_resnet50_2(), models.resnext50_32x4d()
    with pytest.raises(InputError, match=r"basic blocks per stage: expected resnet18 .*, got \(1, 2, 2, 2\)"):
        spec_from_state(basic.state_dict())
    for model in (wide, grouped):
        with pytest.raises(InputError, match=r"layer1.0.conv1.weight: expected 1 to 64 .*not Wide ResNet or ResNeXt"):
            spec_from_state(model.state_dict())

"""Factored layers in the place of dense ones: names, ranks, lists that hold modules, what cannot be factored."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from norton_det.compression.detector import choose_layout, compress_detector
from norton_det.models.factorize import apply_layout, find_candidates, find_layout, replace_module, wrap_like
from norton_det.models.layers import CPConv2d, LowRankLinear
from norton_det.utils.errors import InputError


class Neck(nn.Module):
    """As Detectron2's FPN: it calls convolutions from a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.fpn_output2 = nn.Conv2d(8, 6, 3, padding=1)
        self.fpn_output3 = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.convs = [self.fpn_output2]

    def forward(self, x):
        return self.convs[0](x)


class Detector(nn.Module):
    """Names of a detector, not its function."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Neck()
        self.roi_heads = nn.Module()
        self.roi_heads.box_head = nn.Sequential(OrderedDict(fc1=nn.Linear(40, 12), fc2=nn.Linear(2, 2)))
        self.roi_heads.mask_head = nn.Sequential(nn.Conv2d(6, 6, 3), nn.ConvTranspose2d(6, 6, 2), nn.Conv2d(6, 1, 1))
        self.other = nn.Conv2d(8, 8, 3)


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return Detector().eval()


def test_candidates(detector):
    found = {each.name: each for each in find_candidates(detector)}
    assert list(found) == [
        *("backbone.fpn_output2", "backbone.fpn_output3"),
        *("roi_heads.box_head.fc1", "roi_heads.box_head.fc2", "roi_heads.mask_head.0", "roi_heads.mask_head.1"),
    ]
    assert found["backbone.fpn_output3"].reason == "expected groups=1, got 2"
    assert found["roi_heads.mask_head.1"].reason == "expected a Conv2d, got ConvTranspose2d"
    assert not found["backbone.fpn_output2"].reason and found["backbone.fpn_output2"].part == "neck"
    # rank 5 takes 5 * (8 + 3 + 3) = 70 numbers a filter, the dense one 72
    assert found["backbone.fpn_output2"].largest_rank == 5
    assert found["roi_heads.box_head.fc1"].largest_rank == 9  # 9 * 52 < 480 < 10 * 52
    assert found["roi_heads.box_head.fc2"].largest_rank == 0


def test_choose_layout(detector):
    layout, dense = choose_layout(find_candidates(detector), 2, 9, 4, {"roi_heads.box_head.fc2": None})
    assert layout == {"backbone.fpn_output2": 2, "roi_heads.box_head.fc1": 4}
    assert dense == {
        "backbone.fpn_output3": "expected groups=1, got 2",
        "roi_heads.box_head.fc2": "as asked",
        "roi_heads.mask_head.0": "rank 9 would not make it smaller",
        "roi_heads.mask_head.1": "expected a Conv2d, got ConvTranspose2d",
    }
    layout, _ = choose_layout(find_candidates(detector), None, None, None, {"roi_heads.mask_head.0": 3})
    assert layout == {"roi_heads.mask_head.0": 3}


@pytest.mark.parametrize(
    ("ranks", "single", "pattern"),
    [
        ((1, 1, 1), {"backbone.fpn_output2": "1"}, "fpn_output2: expected a rank or None for dense, got '1'"),
        ((0, 1, 1), {}, "neck_rank: expected 1 or more, or None for dense, got 0"),
        ((1, True, 1), {}, "head_rank: expected 1 or more"),
        ((1, 1, 1.5), {}, "box_head_rank: expected 1 or more"),
        ((1, 1, 1), {"backbone.fpn_output9": 1}, r"layout: backbone.fpn_output9: no such layer; there are backbone"),
        ((1, 1, 1), {"backbone.fpn_output3": 1}, "backbone.fpn_output3: expected groups=1, got 2; leave it dense"),
        ((1, 1, 1), {"backbone.fpn_output2": 6}, "backbone.fpn_output2: expected rank 1 to 5, got 6"),
    ],
)
def test_choose_layout_refuses(detector, ranks, single, pattern):
    with pytest.raises(InputError, match=pattern):
        choose_layout(find_candidates(detector), *ranks, single)


def test_apply_layout_replaces_what_lists_hold_too(detector):
    layout = {"backbone.fpn_output2": 1, "roi_heads.box_head.fc1": 3}
    apply_layout(detector, layout)
    assert detector.backbone.convs[0] is detector.backbone.fpn_output2
    assert isinstance(detector.backbone.fpn_output2, CPConv2d)
    assert isinstance(detector.roi_heads.box_head.fc1, LowRankLinear)
    assert find_layout(detector) == layout
    assert next(each.name for each in find_candidates(detector)) == "backbone.fpn_output3"  # no layer inside a layer
    assert detector.backbone(torch.zeros(1, 8, 5, 5)).shape == (1, 6, 5, 5)


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [
        (
            {"backbone.fpn_output2": 1, "nothing": 1},
            "nothing: expected a dense convolution .* got no such layer",
        ),
        ({"backbone.fpn_output2": 1, "backbone": 1}, "backbone: expected a dense .* got another one"),
        ({"other": 1}, "layout: other: expected a dense convolution or linear layer of neck or heads, got another"),
        ({"roi_heads.mask_head.2": 1}, "got another one"),
        ({"backbone.fpn_output2": 10}, r"backbone.fpn_output2: weight 0: rank: expected 1 to 9 \(Kh"),
        ({"roi_heads.box_head.fc1": 13}, r"roi_heads.box_head.fc1: rank: expected 1 to 12 \(of 40 -> 12\), got 13"),
        ({"backbone.fpn_output3": 1}, "backbone.fpn_output3: conv: expected groups=1"),
    ],
)
def test_apply_layout_is_all_or_nothing(detector, layout, pattern):
    with pytest.raises(InputError, match=pattern):
        apply_layout(detector, layout)
    assert find_layout(detector) == {}


def test_weights_of_new_layers(detector):
    """Fresh ones keep the norm of the dense weight, which the decomposition of random weights loses."""
    weight = detector.backbone.fpn_output2.weight.detach().clone()
    matrix = detector.roi_heads.box_head.fc1.weight.detach().clone()
    layout = {"backbone.fpn_output2": 1, "roi_heads.box_head.fc1": 3}
    apply_layout(detector, layout, "fresh")
    assert detector.backbone.fpn_output2.to_weight().norm() == pytest.approx(float(weight.norm()), rel=1e-5)
    assert detector.roi_heads.box_head.fc1.to_weight().norm() == pytest.approx(float(matrix.norm()), rel=1e-5)
    empty = apply_layout(Detector(), layout, "empty")
    empty.load_state_dict(detector.state_dict())
    assert torch.equal(empty.backbone.fpn_output2.to_weight(), detector.backbone.fpn_output2.to_weight())


def test_wrap_like_keeps_norm_and_activation():
    old = nn.Conv2d(4, 4, 3)
    layer = CPConv2d.from_conv(old)
    assert wrap_like(old, layer) is layer
    old.norm, old.activation = nn.GroupNorm(2, 4), torch.relu
    wrapped = wrap_like(old, layer)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(wrapped(x), old.norm(layer(x)).relu())


def test_replace_module_at_the_root():
    root = nn.Sequential(nn.ReLU())
    replace_module(root, "0", nn.Identity())
    assert isinstance(root[0], nn.Identity)


@pytest.mark.parametrize(("inputs", "outputs"), [(40, 12), (12, 40), (16, 16)])
def test_low_rank_linear_is_the_best_approximation(inputs, outputs, generator):
    linear = nn.Linear(inputs, outputs)
    linear.weight.data.copy_(torch.randn(outputs, inputs, generator=generator))
    values = torch.linalg.svdvals(linear.weight.detach().double())
    for rank in (1, 5, 12):
        layer = LowRankLinear.from_linear(linear, rank)
        error = (layer.to_weight().double() - linear.weight.detach().double()).norm()
        assert float(error) == pytest.approx(float(values[rank:].norm()), rel=1e-4, abs=1e-4)
        assert torch.allclose(layer.first.weight.norm(dim=1), layer.second.weight.norm(dim=0), rtol=1e-3)
    exact = LowRankLinear.from_linear(linear, 12)
    x = torch.randn(3, inputs, generator=generator)
    if inputs == 40 or outputs == 40:
        torch.testing.assert_close(exact(x), linear(x), rtol=1e-4, atol=1e-4)
    assert LowRankLinear.from_linear(nn.Linear(4, 4, bias=False), 2).second.bias is None


def test_low_rank_linear_of_nothing():
    linear = nn.Linear(6, 4)
    linear.weight.data.zero_()
    layer = LowRankLinear.from_linear(linear, 2)
    assert torch.equal(layer(torch.ones(1, 6)), linear(torch.ones(1, 6)))


def test_other_models_are_refused():
    with pytest.raises(InputError, match="expected an R-CNN of Detectron2 or torchvision, got Sequential"):
        compress_detector(nn.Sequential())

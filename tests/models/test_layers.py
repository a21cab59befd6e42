"""CPConv2d: equal to the convolution it stands for, in train and deploy form, for every stride, kernel and rank."""

import copy

import pytest
import torch
from torch import nn

from norton_det.decomposition.cp import Factors, cp_decompose, reconstruct
from norton_det.models.layers import CPConv2d, Factored, LowRankLinear, check_supported, factors_to_state
from norton_det.utils.errors import InputError

SHAPES = [  # kernel, stride, padding
    (3, 1, 1),
    (3, 2, 1),
    ((3, 3), (2, 1), (1, 0)),
    ((1, 3), 1, (0, 1)),
    ((5, 2), (1, 2), (2, 1)),
    (1, 1, 0),
]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * b.abs().max().clamp_min(1.0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding"), SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_layer_equals_the_convolution_of_its_weight(kernel, stride, padding, rank, bias, generator):
    kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    layer = CPConv2d(4, 6, kernel, min(rank, kh * kw), stride, padding, bias)
    if bias:
        nn.init.normal_(layer.bias, generator=generator)
    x = torch.randn(2, 4, 11, 13, generator=generator)
    expected = nn.functional.conv2d(x, layer.to_weight(), layer.bias, stride, padding)
    assert same(layer(x), expected)
    assert same(layer.fuse()(x), expected)


@pytest.mark.parametrize(
    "layer", [CPConv2d(4, 6, 3, 2), LowRankLinear(8, 6, 3)], ids=lambda layer: type(layer).__name__
)
def test_the_weight_is_linear_in_the_factor_that_reads_the_inputs(layer):
    assert isinstance(layer, Factored)
    weight = layer.to_weight().clone()
    with torch.no_grad():
        layer.input_factor.weight.mul_(3.0)
    assert weight.abs().max() > 0 and torch.allclose(layer.to_weight(), 3.0 * weight, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_full_rank_reproduces_the_convolution(stride, generator):
    conv = nn.Conv2d(5, 4, 3, stride, 1)
    x = torch.randn(2, 5, 9, 9, generator=generator)
    assert same(CPConv2d.from_conv(conv, rank=9)(x), conv(x))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_channels_are_filter_major(rank, generator):
    """Channel o*R + r is component r of filter o: the deploy form's groups depend on it."""
    factors = Factors(*(torch.randn(4, d, rank, generator=generator) for d in (5, 3, 3)))
    state = factors_to_state(factors)
    for o in range(4):
        for r in range(rank):
            channel = o * rank + r
            assert torch.equal(state["pointwise.weight"][channel, :, 0, 0], factors.a[o, :, r])
            assert torch.equal(state["vertical.weight"][channel, 0, :, 0], factors.b[o, :, r])
            assert torch.equal(state["horizontal.weight"][channel, 0, 0, :], factors.c[o, :, r])


def test_factors_round_trip_and_are_copied(generator):
    factors = cp_decompose(torch.randn(4, 5, 3, 3, generator=generator), 2)
    layer = CPConv2d.from_factors(factors, stride=2, padding=1)
    back = layer.factors()
    assert all(torch.equal(x, y) for x, y in zip(vars(factors).values(), vars(back).values(), strict=True))
    assert torch.equal(layer.to_weight(), reconstruct(factors))
    before = factors.a.clone()
    with torch.no_grad():
        layer.pointwise.weight.zero_()
    assert torch.equal(factors.a, before)


def test_from_conv_takes_over_all_settings_and_leaves_its_input(generator):
    conv = nn.Conv2d(6, 4, (3, 5), (2, 1), (1, 2)).double().eval()
    before = copy.deepcopy(conv.state_dict())
    layer = CPConv2d.from_conv(conv, rank=2, starts=2)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 5), (2, 1), (1, 2))
    assert not layer.training and layer.pointwise.weight.dtype == torch.double
    assert torch.equal(layer.bias, conv.bias) and layer.bias is not conv.bias
    assert all(torch.equal(before[name], tensor) for name, tensor in conv.state_dict().items())


@pytest.mark.parametrize("rank", [1, 2])
def test_deploy_form_is_two_convolutions(rank):
    layer = CPConv2d(4, 6, 3, rank, 2, 1)
    pointwise, spatial = layer.fuse()
    assert pointwise.kernel_size == (1, 1) and pointwise.out_channels == 6 * rank
    assert spatial.groups == 6 and spatial.in_channels == 6 * rank and spatial.out_channels == 6
    assert spatial.stride == (2, 2) and spatial.padding == (1, 1)


def test_every_parameter_gets_a_gradient(generator):
    layer = CPConv2d(3, 4, 3, 2, padding=1)
    layer(torch.randn(1, 3, 6, 6, generator=generator)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CPConv2d(4, 4, 3, rank=10), "rank: expected 1 to 9"),
        (lambda: CPConv2d(4, 4, (1, 3), rank=4), "rank: expected 1 to 3"),
        (lambda: CPConv2d(4, 4, (1, 3, 3)), "expected one number or"),
        (lambda: CPConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2)), "conv: expected groups=1, got 2"),
        (lambda: CPConv2d.from_conv(nn.Conv2d(4, 4, 3, dilation=2)), "conv: expected dilation=1"),
        (lambda: CPConv2d.from_conv(nn.Conv2d(4, 4, 3, padding="same")), "numeric zero padding, got zeros same"),
        (lambda: CPConv2d.from_conv(nn.Conv2d(4, 4, 3, padding_mode="reflect")), "got reflect"),
        (lambda: CPConv2d.from_conv(nn.Linear(4, 4)), "expected a Conv2d, got Linear"),
        (lambda: check_supported(nn.Conv2d(4, 4, 3, groups=4), "layer1.0.conv2"), "^layer1.0.conv2: "),
    ],
)
def test_what_is_not_supported_is_refused_by_name(build, message):
    with pytest.raises(InputError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)

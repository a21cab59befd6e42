"""Exact variants of a factored layer: the same linear map, computed in other ways; which is fastest is measured.

========  ===========================================================  =================================
variant   computes                                                     of
========  ===========================================================  =================================
factored  1x1, Kh x 1, 1 x Kw, sum over R; of a matrix two products    CPConv2d, LowRankLinear
fused     1x1, grouped Kh x Kw (R -> 1)                                CPConv2d
branches  R times 1x1 and depthwise Kh x Kw, added up                  CPConv2d with R > 1
stacked   1x1, depthwise Kh x Kw over all R*O channels, added up       CPConv2d with R > 1
dense     one Kh x Kw convolution, or one product                      CPConv2d, LowRankLinear
========  ===========================================================  =================================

For R > 1, *branches* and *stacked* avoid a grouped convolution of R channels a group, which oneDNN (PyTorch on the
CPU) computes at half the speed of a depthwise one. There the components are rank-major: channel ``r*O + o``.

Legend: ``O`` filters, ``I`` input channels, ``Kh``/``Kw`` kernel, ``R`` rank, ``N, H, W`` batch and image.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..decomposition.cp import Factors, khatri_rao, reconstruct
from ..models.layers import CPConv2d, Factored, LowRankLinear


class Branches(nn.Module):
    """Sum over components of a 1x1 and a depthwise Kh x Kw convolution: (N, I, H, W) -> (N, O, H', W')."""

    def __init__(self, layer: CPConv2d) -> None:
        super().__init__()
        pointwise, spatial = _component_major(layer)
        self.parts = nn.ModuleList(
            nn.Sequential(_pointwise(layer, a), _depthwise(layer, k, layer.bias if index == 0 else None))
            for index, (a, k) in enumerate(zip(pointwise, spatial, strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.parts
        total = first(x)
        for branch in others:
            total += branch(x)
        return total


class Stacked(nn.Module):
    """One 1x1, one depthwise Kh x Kw over all components, and their sum: (N, I, H, W) -> (N, O, H', W')."""

    def __init__(self, layer: CPConv2d) -> None:
        super().__init__()
        pointwise, spatial = _component_major(layer)
        self.rank = layer.rank
        self.pointwise = _pointwise(layer, pointwise.flatten(0, 1))  # (R*O, I)
        rest = layer.out_channels * (layer.rank - 1)
        bias = None if layer.bias is None else functional.pad(layer.bias.detach(), (0, rest))  # once a filter
        self.spatial = _depthwise(layer, spatial.flatten(0, 1), bias)  # (R*O, Kh, Kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial(self.pointwise(x)).unflatten(1, (self.rank, -1)).sum(1)  # (N, O, H', W')


def variant_names(layer: Factored) -> tuple[str, ...]:
    """The variants that a layer has, of those below; the first is the one to keep unless another is faster."""
    if isinstance(layer, LowRankLinear):
        return ("factored", "dense")
    return ("fused", "factored", *(("branches", "stacked") if layer.rank > 1 else ()), "dense")


def make_variant(layer: Factored, name: str) -> nn.Module:
    """A variant of a layer by its name, a new module in eval mode; same device, dtype and outputs."""
    if isinstance(layer, LowRankLinear):
        return _LINEAR[name](layer).eval()
    assert isinstance(layer, CPConv2d)
    return _CONV[name](layer).eval()


def _copy(layer: CPConv2d) -> CPConv2d:
    return CPConv2d.from_factors(layer.factors(), layer.stride, layer.padding, layer.bias)


def _dense(layer: CPConv2d) -> nn.Conv2d:
    factors = layer.factors()
    weight = reconstruct(Factors(factors.a.double(), factors.b.double(), factors.c.double()))
    sizes = (layer.kernel_size, layer.stride, layer.padding)
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, *sizes, bias=layer.bias is not None)
    return _filled(conv, layer, weight, layer.bias)


def _pointwise(layer: CPConv2d, weight: Tensor) -> nn.Conv2d:
    """1x1 convolution of a weight (P, I)."""
    return _filled(nn.Conv2d(layer.in_channels, len(weight), 1, bias=False), layer, weight[:, :, None, None], None)


def _depthwise(layer: CPConv2d, kernels: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Depthwise convolution of kernels (P, Kh, Kw)."""
    channels = len(kernels)
    sizes = (layer.kernel_size, layer.stride, layer.padding)
    conv = nn.Conv2d(channels, channels, *sizes, groups=channels, bias=bias is not None)
    return _filled(conv, layer, kernels[:, None], bias)


def _filled(conv: nn.Conv2d, layer: CPConv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    old = layer.pointwise.weight
    conv.to(old.device, old.dtype)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if bias is not None and conv.bias is not None:
            conv.bias.copy_(bias)
    return conv


def _component_major(layer: CPConv2d) -> tuple[Tensor, Tensor]:
    """Weights of the 1x1 (R, O, I) and of the depthwise convolution (R, O, Kh, Kw)."""
    factors = layer.factors()
    kernels = khatri_rao(factors.b, factors.c).permute(2, 0, 1)  # (R, O, Kh*Kw)
    return factors.a.permute(2, 0, 1), kernels.unflatten(2, layer.kernel_size)


def _low_rank(layer: LowRankLinear) -> LowRankLinear:
    return LowRankLinear.from_factors(layer.second.weight.detach(), layer.first.weight.detach(), layer.second.bias)


def _one_linear(layer: LowRankLinear) -> nn.Linear:
    bias = layer.second.bias
    linear = nn.Linear(layer.in_features, layer.out_features, bias is not None)
    linear.to(layer.first.weight.device, layer.first.weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(layer.second.weight.double() @ layer.first.weight.double())
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


_CONV: dict[str, Callable[[CPConv2d], nn.Module]] = {
    "fused": CPConv2d.fuse,
    "factored": _copy,
    "branches": Branches,
    "stacked": Stacked,
    "dense": _dense,
}
_LINEAR: dict[str, Callable[[LowRankLinear], nn.Module]] = {"factored": _low_rank, "dense": _one_linear}

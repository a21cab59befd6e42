"""Which layers of a detector outside its ResNet can be factored, and putting factored layers in their place.

The backbone holds only part of an R-CNN's cost; the rest is in these *parts*:

=====  ==============================  ==========================================  ==============
part   Detectron2                      torchvision                                 becomes
=====  ==============================  ==========================================  ==============
neck   backbone.fpn_output2 to 5       backbone.fpn.layer_blocks                   CPConv2d
rpn    proposal_generator.rpn_head     rpn.head                                    CPConv2d
box    roi_heads.box_head              roi_heads.box_head                          LowRankLinear
mask   mask_head and keypoint_head of  mask_head and keypoint_head of              CPConv2d
       roi_heads                       roi_heads
=====  ==============================  ==========================================  ==============

A *layout* (layer name -> rank) says what a detector has of them; it travels in its checkpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..utils.errors import InputError
from .layers import CPConv2d, Factored, LowRankLinear, check_supported

Layout = dict[str, int]
Start = Literal["decompose", "fresh", "empty"]

PARTS = {
    "neck": re.compile(r"backbone\.(fpn_output\d+(\.conv)?|fpn\.layer_blocks\.\d+(\.0)?)"),
    "rpn": re.compile(r"(proposal_generator\.rpn_head|rpn\.head)\.conv(\..+)?"),
    "box": re.compile(r"roi_heads\.box_head\..+"),
    "mask": re.compile(r"roi_heads\.(mask_head|keypoint_head)\..+"),
}


def part_of(name: str) -> str | None:
    """The part that a layer of this name belongs to; ``None`` for all other names."""
    return next((part for part, pattern in PARTS.items() if pattern.fullmatch(name)), None)


@dataclass(frozen=True)
class Candidate:
    """A layer that can be factored, or (``reason`` not empty) one of a part that cannot."""

    name: str
    part: str
    module: nn.Module
    reason: str = ""

    @property
    def largest_rank(self) -> int:
        """The highest rank that is cheaper than the dense layer; 0: none is."""
        if isinstance(self.module, nn.Conv2d):
            outputs, inputs = self.module.out_channels, self.module.in_channels
            height, width = self.module.kernel_size
            size = height * width
            return max(0, min(size, (size * inputs - 1) // (inputs + height + width)))  # R*O*(I + Kh + Kw) < O*I*K
        assert isinstance(self.module, nn.Linear)
        outputs, inputs = self.module.out_features, self.module.in_features
        return (outputs * inputs - 1) // (outputs + inputs)


def find_candidates(detector: nn.Module) -> list[Candidate]:
    """Dense convolutions larger than 1x1 and linear layers of the detector's parts, in the order of its modules."""
    factored = [name for name, module in detector.named_modules() if isinstance(module, Factored)]
    candidates = []
    for name, module in detector.named_modules():
        part = part_of(name)
        if part is None or any(name.startswith(f"{prefix}.") for prefix in factored):
            continue
        if isinstance(module, nn.Linear):
            candidates.append(Candidate(name, part, module))
        elif isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            reason = ""
            try:
                check_supported(module, name)
            except InputError as error:
                reason = str(error).removeprefix(f"{name}: ").partition(";")[0]
            candidates.append(Candidate(name, part, module, reason))
        elif isinstance(module, nn.ConvTranspose2d):
            candidates.append(Candidate(name, part, module, "expected a Conv2d, got ConvTranspose2d"))
    return candidates


def find_layout(detector: nn.Module) -> Layout:
    """Ranks of the factored layers that a detector has outside its ResNet."""
    modules = dict(detector.named_modules())
    layout = {}
    for name, module in modules.items():
        if isinstance(module, Factored) and part_of(name):
            parent = name.rpartition(".")[0]
            layout[parent if isinstance(modules[parent], WithNormAndActivation) else name] = module.rank
    return layout


def apply_layout(detector: nn.Module, layout: Mapping[str, int], weights: Start = "decompose") -> nn.Module:
    """Put factored layers into a dense detector, in place; returned for convenience.

    Args:
        layout: layer name -> rank.
        weights: of the new layers. ``decompose``: factors of those that are there; ``fresh``: the same, scaled to the
            norm of the dense ones, so that random layers to be trained keep their variance; ``empty``: whatever, to
            be loaded from a checkpoint.

    Raises:
        InputError: there is no such layer, or its rank is out of range; the detector is untouched then.
    """
    modules = dict(detector.named_modules())
    layers = {}
    for name, rank in layout.items():
        module = modules.get(name)
        small = isinstance(module, nn.Conv2d) and max(module.kernel_size) == 1
        other = small or part_of(name) is None
        if not isinstance(module, nn.Conv2d | nn.Linear) or other:
            got = "no such layer" if module is None else "another one" if other else type(module).__name__
            raise InputError(
                f"layout: {name}: expected a dense convolution or linear layer of neck or heads, got {got}; "
                "build the detector that the weights are of"
            )
        try:
            layers[name] = _factored(module, rank, weights)
        except InputError as error:
            raise InputError(f"layout: {name}: {error}") from None
    for name, layer in layers.items():
        replace_module(detector, name, layer)
    return detector


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` in the place of a submodule, also in plain lists of its parent (Detectron2's FPN calls those)."""
    parent_name, _, child = name.rpartition(".")
    parent = root.get_submodule(parent_name)
    old = getattr(parent, child)
    setattr(parent, child, new)
    for value in vars(parent).values():
        if isinstance(value, list):
            value[:] = [new if item is old else item for item in value]


class WithNormAndActivation(nn.Sequential):
    """``conv``, a factored layer, and the ``norm`` and ``activation`` of the convolution that it stands for."""


def wrap_like(old: nn.Module, layer: nn.Module) -> nn.Module:
    """A layer with what Detectron2's convolutions do after the linear map: ``norm`` and ``activation``."""
    norm, activation = getattr(old, "norm", None), getattr(old, "activation", None)
    if norm is None and activation is None:
        return layer
    wrapped = WithNormAndActivation()
    wrapped.add_module("conv", layer)
    if norm is not None:
        wrapped.add_module("norm", norm)
    if activation is not None:
        wrapped.add_module("activation", activation if isinstance(activation, nn.Module) else _Function(activation))
    return wrapped.train(old.training)


def factored_layer(module: nn.Module) -> Factored:
    """The factored layer that a module is, or that its ``wrap_like`` holds."""
    return next(layer for layer in module.modules() if isinstance(layer, Factored))


class _Function(nn.Module):
    """An activation given as a plain function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: object) -> object:
        return self.function(x)  # type: ignore[operator]


def _factored(module: nn.Conv2d | nn.Linear, rank: int, weights: Start) -> nn.Module:
    has_bias = module.bias is not None
    if isinstance(module, nn.Linear):
        layer: Factored = (
            LowRankLinear(module.in_features, module.out_features, rank, has_bias)
            if weights == "empty"
            else LowRankLinear.from_linear(module, rank)
        )
    else:
        check_supported(module)
        sizes: Any = (module.kernel_size, rank, module.stride, module.padding, has_bias)
        layer = (
            CPConv2d(module.in_channels, module.out_channels, *sizes)
            if weights == "empty"
            else CPConv2d.from_conv(module, rank)
        )
    if weights == "fresh":
        with torch.no_grad():
            layer.input_factor.weight.mul_(module.weight.norm() / layer.to_weight().norm().clamp_min(1e-12))
    layer.requires_grad_(module.weight.requires_grad)
    return wrap_like(module, layer.to(module.weight.device))

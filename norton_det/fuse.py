"""The deploy form of a network: CP layers as two convolutions, batch normalisation folded.

``fuse`` gives a new model with the same outputs in eval mode; it is for inference only.
"""

import copy
from itertools import pairwise

import torch
from torch import nn

from .errors import InputError
from .layers import CPConv2d


def fuse(model: nn.Module) -> nn.Module:
    """Deploy form of any model with ``CPConv2d`` layers: a new model in eval mode, outputs equal to 1e-5.

    Every ``CPConv2d`` becomes a 1x1 and a grouped Kh x Kw convolution; every batch normalisation (also frozen)
    that follows a convolution as ``convN``/``bnN``, ``conv``/``bn`` or next to it in a ``Sequential`` is
    folded into it. The input model is untouched.

    Raises:
        InputError: the model is in training mode, where batch statistics cannot be folded.
    """
    if model.training:
        raise InputError("fuse: expected a model in eval mode, got training mode; call model.eval() first")
    model = copy.deepcopy(model)
    if isinstance(model, CPConv2d):
        return model.fuse()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, CPConv2d):
                setattr(parent, name, child.fuse())
    for parent in list(model.modules()):
        for conv_name, norm_name in _pairs(parent):
            conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
            last = conv[-1] if isinstance(conv, nn.Sequential) and len(conv) else conv
            if isinstance(last, nn.Conv2d) and _is_batch_norm(norm):
                _fold(last, norm)
                setattr(parent, norm_name, nn.Identity())
    return model.eval()


def _pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Names of children (convolution, normalisation) where the second directly follows the first."""
    names = [name for name, _ in parent.named_children()]
    if isinstance(parent, nn.Sequential):
        return list(pairwise(names))
    return [
        (name, name.replace("conv", "bn")) for name in names if "conv" in name and name.replace("conv", "bn") in names
    ]


def _is_batch_norm(module: nn.Module) -> bool:
    """Batch normalisation with fixed affine statistics: PyTorch's, or a frozen one of either detection stack."""
    fields = ("weight", "bias", "running_mean", "running_var")
    has_statistics = all(isinstance(getattr(module, field, None), torch.Tensor) for field in fields)
    return has_statistics and (isinstance(module, nn.BatchNorm2d) or type(module).__name__.startswith("Frozen"))


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Fold ``norm(conv(x))`` into ``conv`` in place."""
    weight, bias, mean, variance = norm.weight, norm.bias, norm.running_mean, norm.running_var
    with torch.no_grad():
        scale = weight.double() / (variance.double() + norm.eps).sqrt()  # type: ignore[operator,union-attr]
        shift = bias.double() - mean.double() * scale  # type: ignore[operator,union-attr]
        if conv.bias is not None:
            shift = shift + conv.bias.double() * scale
        conv.weight.copy_(conv.weight.double() * scale.view(-1, 1, 1, 1))
        conv.bias = nn.Parameter(shift.to(conv.weight.dtype))

"""The deploy form of a network: CP layers as two convolutions, batch normalisation folded.

``fuse`` gives a new model with the same outputs in eval mode; it is for inference only.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn

from ..utils.errors import InputError
from .factorize import replace_module
from .keys import split_detector_state
from .layers import CPConv2d


def fuse(model: nn.Module) -> nn.Module:
    """Deploy form of any model with ``CPConv2d`` layers: a new model in eval mode, outputs equal to 1e-5.

    Every ``CPConv2d`` becomes a 1x1 and a grouped Kh x Kw convolution; every batch normalisation (also frozen)
    declared after a convolution as ``convN``/``bnN`` or ``conv``/``bn``, or next to it in a ``Sequential``, is
    folded into it, and so is the ``norm`` of Detectron2's convolutions, unless the convolution is used in more than
    one place. The input model is untouched.

    Raises:
        InputError: the model is in training mode, where batch statistics cannot be folded.
    """
    if model.training:
        raise InputError("fuse: expected a model in eval mode, got training mode; call model.eval() first")
    model = fold_batch_norms(copy.deepcopy(model))
    if isinstance(model, CPConv2d):
        return model.fuse()
    forms: dict[int, nn.Module] = {}  # a layer that is used in several places stays one
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, CPConv2d):
            replace_module(model, name, forms.setdefault(id(module), module.fuse()))
    return model.eval()


@contextmanager
def fused_resnet(detector: nn.Module) -> Iterator[None]:
    """The detector with its ResNet in deploy form, channels last; afterwards as it was."""
    name = split_detector_state(detector.state_dict())[0].removesuffix(".")
    resnet = detector.get_submodule(name)
    replace_module(detector, name, fuse(resnet).to(memory_format=torch.channels_last))
    try:
        yield
    finally:
        replace_module(detector, name, resnet)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold batch normalisations into the convolutions before them, dense or ``CPConv2d``; in place, returned.

    Which ones, see ``fuse``. For a model in eval mode; its outputs stay equal to 1e-5.
    """
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    for parent in list(model.modules()):
        for conv_name, norm_name in _pairs(parent):
            conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
            last = conv[-1] if isinstance(conv, nn.Sequential) and len(conv) else conv
            shared = uses[id(conv)] > 1 or uses[id(last)] > 1
            if _is_plain_conv(last) and _is_batch_norm(norm) and not shared:
                _fold(last, norm)
                setattr(parent, norm_name, nn.Identity())
    for conv in model.modules():  # Detectron2's convolutions hold their normalisation
        norm = getattr(conv, "norm", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.Module) and _is_batch_norm(norm) and uses[id(conv)] == 1:
            _fold(conv, norm)
            conv.norm = None  # type: ignore[assignment]
    return model


def norm_scale(norm: nn.Module) -> torch.Tensor:
    """What a batch normalisation multiplies each channel by in eval mode, (C,)."""
    return norm.weight * (norm.running_var + norm.eps).rsqrt()  # type: ignore[operator]


def folded_weight(conv: nn.Module, norm: nn.Module) -> torch.Tensor:
    """The weight (O, I, Kh, Kw) of a convolution with the normalisation after it folded in."""
    return conv.weight * norm_scale(norm).view(-1, 1, 1, 1)  # type: ignore[operator]


def _pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Names of children (convolution, normalisation) where the second directly follows the first."""
    names = [name for name, _ in parent.named_children()]
    if isinstance(parent, nn.Sequential):
        return list(pairwise(names))
    follows = {name: name.replace("conv", "bn") for name in names if "conv" in name}
    # a normalisation declared before its convolution (a pre-activation network) also runs before it
    return [(conv, norm) for conv, norm in follows.items() if norm in names[names.index(conv) + 1 :]]


def _is_plain_conv(module: nn.Module) -> bool:
    """A convolution that does nothing else; a subclass may apply a norm or an activation of its own."""
    kinds = (nn.Conv2d, CPConv2d)
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _is_batch_norm(module: nn.Module) -> bool:
    """Batch normalisation with fixed affine statistics: PyTorch's, or a frozen one of either detection stack."""
    fields = ("weight", "bias", "running_mean", "running_var")
    has_statistics = all(isinstance(getattr(module, field, None), torch.Tensor) for field in fields)
    known = isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) or type(module).__name__.startswith("Frozen")
    return has_statistics and known


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    """Fold ``norm(conv(x))`` into ``conv`` in place."""
    assert isinstance(conv, nn.Conv2d | CPConv2d)
    last, rank = (conv.horizontal, conv.rank) if isinstance(conv, CPConv2d) else (conv, 1)
    fields = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (getattr(norm, field).double() for field in fields)
    with torch.no_grad():
        scale = weight / (variance + norm.eps).sqrt()
        shift = bias - mean * scale
        if conv.bias is not None:
            shift = shift + conv.bias.double() * scale
        last.weight.copy_(last.weight.double() * scale.repeat_interleave(rank).view(-1, 1, 1, 1))  # filter-major
        conv.bias = nn.Parameter(shift.to(last.weight.dtype))

"""Starting weights of a ResNet from every origin, as a network of this package takes them, and norton checkpoints."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.description import NetworkInfo
from ..models.preprocessing import Preprocessing
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..models.stacks import stack_named
from ..models.state import check_state, is_counter, match_counters
from ..utils.errors import InputError, naming
from .opened import OpenedWeights, open_weights, reading_once

EPS = 1e-5  # of every batch normalisation here
_DTYPE_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
_NORM = re.compile(r"(?:bn1|layer\d\.\d+\.(?:bn[123]|downsample\.1))\.weight")
_HARMLESS = ("n_averaged", "pixel_mean", "pixel_std", "total_ops", "total_params")  # of averaging, Detectron2, thop


@dataclass(frozen=True)
class LoadedWeights:
    """Weights of a ResNet and all that is needed to use them.

    Attributes:
        state: float32 tensors on the CPU by torchvision's names (``conv2.pointwise/vertical/horizontal.weight`` of CP
            layers, filter-major); ``fc`` only if the source has one.
        spec: ranks and ratios.
        preprocessing: colour order and normalisation that the weights expect.
        num_classes: outputs of ``fc``; 0 without.
        stride_in_1x1: whether a stage's stride sits in conv1 rather than conv2.
        source: what it was, a short phrase for people.
    """

    state: dict[str, Tensor]
    spec: CompressionSpec
    preprocessing: Preprocessing
    num_classes: int
    stride_in_1x1: bool
    source: str

    def build(self) -> NortonResNet:
        """The network with these weights, in eval mode."""
        info = NetworkInfo(self.spec, self.preprocessing, self.num_classes, self.stride_in_1x1)
        return info.build_with(self.state, self.source)


def load_weights(
    source: str | Path | OpenedWeights, preprocessing: Preprocessing | None = None, stride_in_1x1: bool | None = None
) -> LoadedWeights:
    """Read starting weights of a ResNet-18, -34, -50, -101 or -152.

    Args:
        source: a file, or ``torchvision://resnet50`` (or another of ``ARCHITECTURES``), optionally with the name of its
            weights as in ``torchvision://resnet50/IMAGENET1K_V2``; V1, the dense network of the paper, without. Or
            what ``open_weights`` has read.
        preprocessing, stride_in_1x1: override what the origin implies. A norton checkpoint states both. MSRA's
            convention (``preprocessing.MSRA``, stride in the 1x1) is taken for Caffe2 names, for the author "Caffe2" or
            "MSRA", and for a detector with Detectron2's names: it is the default of Detectron2's zoo, and a detector
            that was trained otherwise has to say so here. ``preprocessing.TORCHVISION`` and the stride in the 3x3
            are taken for all else, such as a conversion of torchvision's weights to Detectron2's names.
            What the ``meta`` of OpenMMLab's files says, and pixel statistics that are stored with a detector, decide
            before these rules.

    Frozen normalisation with scale and shift only (Caffe2) gets ``running_mean`` 0 and ``running_var`` ``1 - 1e-5``,
    which is the identity with ``eps`` 1e-5. torchvision's first COCO detectors ran their frozen normalisation
    with ``eps`` 0; the file does not say so and ``eps`` stays 1e-5.

    Raises:
        InputError: no such file, no weights, weights of another network, wrong shapes, values that are not finite, or
            anything that would have to run; one line with the file, what was expected, what came and the mend.
    """
    try:
        opened = open_weights(source)
        _check_strays(opened)
        info = replace(opened.info, layout={})
        if preprocessing is not None:
            info = replace(info, preprocessing=preprocessing)
        if stride_in_1x1 is not None:
            info = replace(info, stride_in_1x1=stride_in_1x1)
        state = _float32_state(opened, info)
    except InputError as error:
        raise InputError(" ".join(str(error).splitlines())) from None  # names in a file may hold line breaks
    dtype = _DTYPE_NAMES.get(opened.resnet.state["conv1.weight"].dtype, "other type")
    phrase = f"{opened.kind} ({dtype})"
    return LoadedWeights(state, info.spec, info.preprocessing, info.num_classes, info.stride_in_1x1, phrase)


def load_checkpoint(path: str | Path) -> Any:
    """What ``save_checkpoint`` wrote, in eval mode: a ``NortonResNet``, or a detector of Detectron2 or torchvision.

    Everything comes from the file: ranks, widths, classes; of a detector its labels, sizes, anchors and thresholds too.
    Names and shapes are compared before a ResNet gets memory, so that a file cannot claim more than it holds.

    Raises:
        InputError: not a norton checkpoint, damaged, other tensors than it says, or its stack is not installed.
    """
    with reading_once():
        opened = open_weights(path)
        if opened.described is not None and opened.stack:
            return stack_named(opened.stack).load_detector(str(path))
        return load_resnet(opened)


def load_resnet(path: str | Path | OpenedWeights) -> NortonResNet:
    """The ResNet of a norton checkpoint, float32 in eval mode.

    Raises:
        InputError: not such a checkpoint, damaged, or its tensors do not fit its own spec.
    """
    opened = open_weights(path)
    if opened.described is None:
        raise InputError(
            f"{opened.source}: expected a norton checkpoint, got other weights; run norton-det compress on them"
        )
    if any(name.startswith("backbone.") for name in opened.state):
        raise InputError(
            f"{opened.source}: expected a ResNet's checkpoint, got a detector's; give it to its stack as weights"
        )
    return opened.described.build_with(opened.state, opened.source)


def _check_strays(opened: OpenedWeights) -> None:
    """Refuse a bare ResNet with layers of something else, but for what a self-supervised training puts on top."""
    resnet = opened.resnet
    strays = sorted(name for name in resnet.rest if not name.endswith(_HARMLESS))
    trained_alone = opened.family is not None and "fc.weight" not in resnet.state
    if strays and not resnet.prefix and resnet.naming != "caffe2" and not trained_alone:
        raise InputError(
            f"{opened.source}: expected only layers of a ResNet, got {len(strays)} others (first: {strays[0][:60]}); "
            "use weights of a plain ResNet"
        )


def _float32_state(opened: OpenedWeights, info: NetworkInfo) -> dict[str, Tensor]:
    """The ResNet's tensors as the network has them; a huge or hollow one is met before it is copied."""
    expected = info.expected_state()
    with naming(opened.source):
        state = opened.resnet.state
        if opened.resnet.naming != "torchvision":
            state = _with_statistics(state)
    state = match_counters(state, expected)
    check_state(state, expected, opened.source)
    with naming(opened.source):
        return {name: _to_float32(name, state[name]) for name in expected}


def _to_float32(name: str, tensor: Tensor) -> Tensor:
    """A float32 copy with finite values (int64 for counters)."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
        raise InputError(f"{name}: expected a dense tensor of real numbers, got another kind; save plain weights")
    if is_counter(name):
        return tensor.detach().to(torch.int64, copy=True)
    if not tensor.is_floating_point():
        raise InputError(
            f"{name}: expected floating point numbers, got {tensor.dtype}; save weights that are not quantised"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{name}: expected {tensor.numel()} stored values, got fewer; get the file again")
    values = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if bad := int((~values.isfinite()).sum()):
        raise InputError(
            f"{name}: expected finite values, got {bad} of {values.numel()} NaN or infinite; "
            "use weights of a run that did not diverge"
        )
    if name.endswith("running_var") and float(values.min()) < 0:
        raise InputError(f"{name}: expected variances of 0 or more, got {float(values.min()):g}; get the file again")
    return values


def _with_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the statistics that frozen normalisation leaves out where it is an affine map alone."""
    if any(name.endswith(("running_mean", "running_var")) for name in state):
        return state
    complete = dict(state)
    for name, weight in state.items():
        if not _NORM.fullmatch(name) or weight.ndim != 1:
            continue
        channels, norm = weight.shape[0], name.removesuffix(".weight")
        if channels * weight.element_size() > weight.untyped_storage().nbytes():
            raise InputError(f"{name}: expected {channels} stored values, got fewer; get the file again")
        complete[f"{norm}.running_mean"] = torch.zeros(channels)
        complete[f"{norm}.running_var"] = torch.full((channels,), 1 - EPS)
    return complete

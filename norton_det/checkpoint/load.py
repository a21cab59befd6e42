"""Starting weights of every origin, read without running anything from a file.

Known by their content, not by the ending of their name:

- state dicts of torchvision's ResNet-18 to -152 (torch or safetensors file; fp16, bf16, fp32), also wrapped
  as ``{"model": ...}`` and of detectors trained by torchvision's or Detectron2's scripts;
- norton checkpoints;
- the pickles of Detectron2's and Detectron's model zoos, ImageNet models and detectors;
- the checkpoints of the NORTON release;
- ``torchvision://resnet50``, downloaded by torchvision, or ``zoo://dense/mask_rcnn``, by ``norton_det.checkpoint.zoo``.

What a network expects at its input and where its stride sits cannot be seen in a tensor. They follow from the origin:
torchvision's convention is RGB, ImageNet mean and std, stride in the 3x3; that of MSRA's Caffe models BGR, std 1,
stride in the 1x1. ``load_weights`` documents which is taken, and both can be given.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.description import NetworkInfo
from ..models.keys import ResNetPart, find_resnet
from ..models.preprocessing import MSRA, TORCHVISION, Preprocessing
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..models.spec_from_state import spec_from_state
from ..models.state import check_state, is_counter, match_counters
from ..utils.errors import InputError, naming
from .checkpoint import read_checkpoint, read_tensors
from .sources import download, is_download, is_safetensors, local, read_content
from .tensor_file import METADATA_KEY

EPS = 1e-5  # of every batch normalisation here
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema", "model_state", "blobs")
_MAX_CLASSES = 1_000_000
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
    source: str | Path, preprocessing: Preprocessing | None = None, stride_in_1x1: bool | None = None
) -> LoadedWeights:
    """Read starting weights of a ResNet-18, -34, -50, -101 or -152.

    Args:
        source: a file, or ``torchvision://resnet50`` (or another of ``ARCHITECTURES``), optionally with the name of its
            weights as in ``torchvision://resnet50/IMAGENET1K_V2``; V1, the dense network of the paper, without.
        preprocessing, stride_in_1x1: override what the origin implies. A norton checkpoint states both. MSRA's
            convention (``preprocessing.MSRA``, stride in the 1x1) is taken for Caffe2 names, for the author "Caffe2" or
            "MSRA", and for a detector with Detectron2's names: it is the default of Detectron2's zoo, and a detector
            that was trained otherwise has to say so here. ``preprocessing.TORCHVISION`` and the stride in the 3x3
            are taken for all else, such as a conversion of torchvision's weights to Detectron2's names.
            Pixel statistics that are stored with a detector decide before these rules.

    Frozen normalisation with scale and shift only (Caffe2) gets ``running_mean`` 0 and ``running_var`` ``1 - 1e-5``,
    which is the identity with ``eps`` 1e-5. torchvision's first COCO detectors ran their frozen normalisation
    with ``eps`` 0; the file does not say so and ``eps`` stays 1e-5.

    Raises:
        InputError: no such file, no weights, weights of another network, wrong shapes, values that are not finite, or
            anything that would have to run; one line with the file, what was expected, what came and the mend.
    """
    try:
        return _load(source, preprocessing, stride_in_1x1)
    except InputError as error:
        raise InputError(" ".join(str(error).splitlines())) from None  # names in a file may hold line breaks


def _load(source: str | Path, preprocessing: Preprocessing | None, stride_in_1x1: bool | None) -> LoadedWeights:
    name = str(source)
    if is_download(source):
        name, state = download(source)
        return _understand(name, state, preprocessing, stride_in_1x1, name)
    source = local(source)  # once: a file of the zoo is read for its checksum
    if is_safetensors(source):
        info, tensors = read_checkpoint(source)
        if info is not None:
            return _from_norton(name, info, tensors, preprocessing, stride_in_1x1)
        return _understand(name, tensors, preprocessing, stride_in_1x1)
    return _understand(name, read_content(source), preprocessing, stride_in_1x1)


def load_detector_state(source: str | Path) -> dict[str, Tensor] | None:
    """All tensors of a detector's file by their own names, neck and heads included; ``None`` for a bare ResNet.

    Raises:
        InputError: as ``load_weights``.
    """
    if is_download(source):
        return None
    with naming(str(source)):
        source = local(source)
        raw = read_tensors(source) if is_safetensors(source) else _unwrap(read_content(source))[0]
        return raw if "backbone." in find_resnet(raw).prefix else None


def _understand(
    name: str,
    content: dict[Any, Any],
    preprocessing: Preprocessing | None,
    stride_in_1x1: bool | None,
    phrase: str = "",
) -> LoadedWeights:
    """Weights from what a file holds; messages name the file."""
    with naming(name):
        raw, fields = _unwrap(content)
        part = find_resnet(raw)
        strays = sorted(name for name in part.rest if not name.endswith(_HARMLESS))
        if strays and not part.prefix and part.layout != "caffe2":
            raise InputError(
                f"expected only layers of a ResNet, got {len(strays)} others (first: {strays[0][:60]}); "
                "use weights of a plain ResNet"
            )
        rank, ratios = fields.get("rank"), fields.get("compress_rate")
        spec = spec_from_state(
            part.state,
            rank if isinstance(rank, int) and not isinstance(rank, bool) else None,
            ratios if isinstance(ratios, str | list | tuple) else None,
        )
        stored, standard_stride = _conventions(part, _text(fields.get("__author__")))
        if isinstance(fields.get(METADATA_KEY), str):  # a trainer's file of norton_det says so itself
            own = NetworkInfo.from_json(fields[METADATA_KEY])
            spec, stored, standard_stride = own.spec, own.preprocessing, own.stride_in_1x1
        info = NetworkInfo(
            spec,
            preprocessing or stored,
            _classes(part.state, spec),
            standard_stride if stride_in_1x1 is None else stride_in_1x1,
        )
        state = part.state if part.layout == "torchvision" else _with_statistics(part.state)
        dtype = _DTYPE_NAMES.get(part.state["conv1.weight"].dtype, "other type")
    return _finish(name, state, info, f"{phrase or _phrase(part)} ({dtype})")


def _from_norton(
    name: str,
    info: NetworkInfo,
    tensors: dict[str, Tensor],
    preprocessing: Preprocessing | None,
    stride_in_1x1: bool | None,
) -> LoadedWeights:
    info = replace(
        info,
        preprocessing=preprocessing or info.preprocessing,
        stride_in_1x1=info.stride_in_1x1 if stride_in_1x1 is None else stride_in_1x1,
    )
    with naming(name):
        part = find_resnet(tensors)
    kind = "backbone of a norton detector" if "backbone." in part.prefix else "norton checkpoint"
    tensors = tensors if not part.prefix else part.state
    first = tensors.get("conv1.weight", torch.zeros(0))
    phrase = f"{kind} ({_DTYPE_NAMES.get(first.dtype, 'other type')})"
    return _finish(name, tensors, info, phrase)


def _finish(name: str, state: dict[str, Tensor], info: NetworkInfo, phrase: str) -> LoadedWeights:
    """Check names and shapes against the network, then convert; a huge or hollow tensor is met before it is copied."""
    expected = info.expected_state()
    state = match_counters(state, expected)
    check_state(state, expected, name)
    with naming(name):
        converted = {key: _to_float32(key, state[key]) for key in expected}
    return LoadedWeights(converted, info.spec, info.preprocessing, info.num_classes, info.stride_in_1x1, phrase)


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


def _classes(state: dict[str, Tensor], spec: CompressionSpec) -> int:
    weight, inputs = state.get("fc.weight"), spec.architecture.outputs[3]
    if weight is None:
        return 0
    if weight.ndim != 2 or not 1 <= weight.shape[0] <= _MAX_CLASSES or weight.shape[1] != inputs:
        raise InputError(
            f"fc.weight: expected shape (classes, {inputs}), got {tuple(weight.shape)}; remove this classifier"
        )
    return weight.shape[0]


def _conventions(part: ResNetPart, author: str) -> tuple[Preprocessing, bool]:
    """Preprocessing and stride_in_1x1 that the origin implies, see ``load_weights``."""
    mean, std = _pixels(part.rest, "pixel_mean"), _pixels(part.rest, "pixel_std")
    for known in (MSRA, TORCHVISION):
        if _close(mean, known.mean) and _close(std, known.std):
            return known, known == MSRA and part.layout != "torchvision"
    by_msra = part.layout == "caffe2" or re.search("caffe2|msra", author.lower()) is not None
    zoo_detector = part.layout == "detectron2" and "backbone." in part.prefix and "torchvision" not in author.lower()
    return (MSRA, True) if by_msra or zoo_detector else (TORCHVISION, False)


def _pixels(rest: dict[str, Any], field: str) -> list[float]:
    """A detector's stored mean or standard deviation of pixels."""
    tensor = rest.get(field)
    return tensor.detach().flatten().tolist() if isinstance(tensor, Tensor) and tensor.numel() == 3 else []


def _text(value: object) -> str:
    return value[:200] if isinstance(value, str) else ""


def _close(values: list[float], known: tuple[float, float, float]) -> bool:
    return len(values) == 3 and all(abs(a - b) < 0.01 for a, b in zip(values, known, strict=True))


def _phrase(part: ResNetPart) -> str:
    detector = "backbone." in part.prefix
    if part.released:
        return "backbone of a NORTON release detector" if detector else "NORTON release checkpoint"
    if part.layout == "caffe2":
        return "Caffe2 (MSRA) weights"
    if "bottom_up." in part.prefix or (detector and part.layout == "detectron2"):
        return "backbone of a Detectron2 detector"
    if detector:
        return "backbone of a torchvision detector"
    return "Detectron2 state dict" if part.layout == "detectron2" else "torchvision state dict"


def _unwrap(content: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a file's dict, and what stands beside them."""
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
            return _tensors(inner), {str(field): value for field, value in content.items() if field != key}
    return _tensors(content), {str(field): value for field, value in content.items() if not isinstance(value, Tensor)}


def _tensors(entries: dict[Any, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}

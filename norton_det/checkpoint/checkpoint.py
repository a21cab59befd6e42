"""Self-describing checkpoints: a safetensors file that carries the spec, the preprocessing and the classes.

Nothing has to be repeated on a command line to load one, and nothing in it can run.
Metadata key ``norton_det`` holds one JSON object (see ``tensor_file``)::

    {"version": 3, "spec": {...}, "preprocessing": {...}, "num_classes": 1000, "stride_in_1x1": false, "sha256": "..."}

A detector whose neck or heads are factored too has ``"layout": {"layer name": rank, ...}``. Files of version 1 and 2
have no digest, and are still read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models.description import NetworkInfo
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..utils.errors import InputError, naming
from .digest import DIGEST_KEY
from .tensor_file import METADATA_KEY as METADATA_KEY
from .tensor_file import read_fields, read_file, write_tensors

BESIDE = (DIGEST_KEY, "detector")  # fields of tensor_file and of tv.weights


def save_checkpoint(path: str | Path, model: NortonResNet, spec: CompressionSpec | None = None) -> Path:
    """Write a model with its spec and preprocessing; the file appears whole or not at all.

    Args:
        path: where to; ``.safetensors`` by custom.
        model: a ``NortonResNet``.
        spec: what the model was compressed with; by default ``model.spec``, and it has to describe it.

    Raises:
        InputError: the spec is of another network, the model is a deploy form, or the file cannot be written.
    """
    spec = model.spec if spec is None else spec
    if not spec.same_network(model.spec):
        raise InputError(f"{path}: spec: expected that of the model, {model.spec}, got {spec}; pass model.spec")
    info = NetworkInfo(spec, model.preprocessing, model.num_classes, model.stride_in_1x1)
    if model.state_dict().keys() != info.expected_state().keys():
        raise InputError(f"{path}: expected a network as compress gives it, got a deploy form; save it before fuse()")
    return save_tensors(path, model.state_dict(), info)


def save_tensors(path: str | Path, state: Mapping[str, Tensor], info: NetworkInfo) -> Path:
    """Write tensors, such as those of a whole detector, with the spec of the ResNet among them; whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    return write_tensors(path, state, info.to_fields())


def read_info(path: str | Path) -> NetworkInfo | None:
    """What a safetensors file says of itself; ``None`` when norton_det did not write it.

    Raises:
        InputError: the file is missing, truncated, not safetensors, or its metadata is damaged.
    """
    return _info(path, read_fields(path)[0])


def tensor_names(path: str | Path) -> list[str]:
    """Names in a safetensors file."""
    return read_fields(path)[1]


def read_checkpoint(path: str | Path) -> tuple[NetworkInfo | None, dict[str, Tensor]]:
    """What a safetensors file says of itself (see ``read_info``), and its tensors on the CPU.

    Raises:
        InputError: the file is missing, damaged, not safetensors, its content is not what was written, or it holds a
            type that PyTorch lacks.
    """
    fields, tensors = read_file(path)
    return _info(path, fields), tensors


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        InputError: as ``read_checkpoint``.
    """
    return read_file(path)[1]


def _info(path: str | Path, fields: dict[str, Any] | None) -> NetworkInfo | None:
    """Of the description in a file; what others keep beside it there is left aside."""
    if fields is None:
        return None
    with naming(path):
        return NetworkInfo.from_fields({name: value for name, value in fields.items() if name not in BESIDE})


def load_checkpoint(path: str | Path) -> NortonResNet:
    """The model of a norton checkpoint, float32 in eval mode; ranks, widths and classes come from the file.

    Names and shapes are compared before the network gets memory, so that a file cannot claim more than it holds.

    Raises:
        InputError: not a norton checkpoint, damaged, or its tensors do not fit its own spec.
    """
    info, state = read_checkpoint(path)
    if info is None:
        raise InputError(f"{path}: expected a norton checkpoint, got other weights; run norton-det compress on them")
    if any(name.startswith("backbone.") for name in state):
        raise InputError(f"{path}: expected a ResNet's checkpoint, got a detector's; give it to its stack as weights")
    return info.build_with(state, str(path))

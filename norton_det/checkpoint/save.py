"""Self-describing checkpoints: a safetensors file that carries the spec, the preprocessing and the classes.

Nothing has to be repeated on a command line to load one, and nothing in it can run.
Metadata key ``norton_det`` holds one JSON object (see ``tensor_file``)::

    {"version": 3, "spec": {...}, "preprocessing": {...}, "num_classes": 1000, "stride_in_1x1": false, "sha256": "..."}

A detector whose neck or heads are factored too has ``"layout": {"layer name": rank, ...}``. Files of version 1 and 2
have no digest, and are still read.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..models.description import NetworkInfo
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..utils.errors import InputError
from .tensor_file import write_tensors


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

"""Self-describing checkpoints: a safetensors file that carries the spec, the preprocessing and the classes.

Nothing has to be repeated on a command line to load one, and nothing in it can run.
Metadata key ``norton_det`` holds one JSON object (see ``tensor_file``)::

    {"version": 3, "spec": {...}, "preprocessing": {...}, "num_classes": 1000, "stride_in_1x1": false, "sha256": "..."}

A detector whose neck or heads are factored too has ``"layout": {"layer name": rank, ...}``, and a detector has
``"detector": {...}`` with all that its stack has to know beside the weights (``DetectionStack.detector_fields``).
Files of version 1 and 2 have no digest, and are still read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..models.description import NetworkInfo
from ..models.labels import labels_of, named
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..models.stacks import stack_of
from ..utils.errors import InputError
from .opened import DETECTOR_KEY, OpenedWeights
from .tensor_file import write_tensors


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    spec: CompressionSpec | None = None,
    *,
    classes: Sequence[str] | None = None,
    config: Any = None,
) -> Path:
    """Write a ResNet or a whole detector with all that is needed to load it; the file appears whole or not at all.

    Args:
        path: where to; ``.safetensors`` by custom.
        model: a ``NortonResNet``, or a detector of Detectron2 or torchvision, compressed or dense.
        spec: what a ResNet was compressed with; by default ``model.spec``, and it has to describe it.
        classes: names of a detector's classes, without the background; by default those that it knows.
        config: the ``CfgNode`` of a Detectron2 detector that was not built by this package.

    Raises:
        InputError: another model, a spec of another network, a deploy form, a detector with a part that a file cannot
            hold, or the file cannot be written.
    """
    if not isinstance(model, NortonResNet):
        if spec is not None:
            raise InputError(f"{path}: spec: expected none beside a detector, which knows its own; leave spec out")
        return save_detector(path, model, classes=classes, config=config)
    if classes is not None or config is not None:
        raise InputError(f"{path}: expected classes and config beside a detector alone, got a ResNet; leave them out")
    spec = model.spec if spec is None else spec
    if not spec.same_network(model.spec):
        raise InputError(f"{path}: spec: expected that of the model, {model.spec}, got {spec}; pass model.spec")
    info = NetworkInfo(spec, model.preprocessing, model.num_classes, model.stride_in_1x1)
    if model.state_dict().keys() != info.expected_state().keys():
        raise InputError(f"{path}: expected a network as compress gives it, got a deploy form; save it before fuse()")
    return save_tensors(path, model.state_dict(), info)


def save_detector(
    path: str | Path, detector: nn.Module, *, classes: Sequence[str] | None = None, config: Any = None
) -> Path:
    """Write a detector of Detectron2 or torchvision; see ``save_checkpoint``."""
    stack = stack_of(detector)
    fields = stack.detector_fields(detector, config)
    if classes is not None:
        names = named(classes, stack.num_classes(detector), str(path))
        labels = labels_of(detector)
        known = labels.category_ids if names == labels.classes else ()
        labels = replace(labels, classes=names, category_ids=known, assumed=False)
        fields["labels"] = labels.to_fields()
    state = OpenedWeights(str(path), detector.state_dict(), {}).detector
    return save_tensors(path, state, stack.network_info(detector), fields)


def save_tensors(
    path: str | Path, state: Mapping[str, Tensor], info: NetworkInfo, detector: Mapping[str, Any] | None = None
) -> Path:
    """Write tensors with the spec of the ResNet among them; whole or not at all.

    Args:
        path: where to.
        state: the tensors.
        info: of the ResNet.
        detector: of tensors of a whole detector: what ``DetectionStack.detector_fields`` gives.

    Raises:
        InputError: the file cannot be written.
    """
    return write_tensors(path, state, info.to_fields() | ({DETECTOR_KEY: dict(detector)} if detector else {}))

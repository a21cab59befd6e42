"""Self-describing checkpoints: a safetensors file that carries the spec, the preprocessing and the classes.

Nothing has to be repeated on a command line to load one, and nothing in it can run.
Metadata key ``norton_det`` holds one JSON object (see ``tensor_file``)::

    {"version": 3, "spec": {...}, "preprocessing": {...}, "num_classes": 1000, "stride_in_1x1": false, "sha256": "..."}

A detector whose neck or heads are factored too has ``"layout": {"layer name": rank, ...}``. Files of version 1 and 2
have no digest, and are still read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.preprocessing import TORCHVISION, Preprocessing
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..utils.errors import InputError, naming
from .digest import DIGEST_KEY
from .tensor_file import METADATA_KEY as METADATA_KEY
from .tensor_file import read_fields, read_file, write_tensors

FORMAT_VERSION = 3  # that is written, and the newest that is read
BESIDE = (DIGEST_KEY, "detector")  # fields of tensor_file and of tv.weights
_FIELDS = {"version", "spec", "preprocessing", "num_classes", "stride_in_1x1", "layout"}


@dataclass(frozen=True)
class CheckpointInfo:
    """What a norton checkpoint says of itself.

    Attributes:
        spec: ranks and ratios.
        preprocessing: colour order and normalisation.
        num_classes: outputs of the classifier; 0 for a backbone.
        stride_in_1x1: where a stage's stride sits.
        layout: ranks of a detector's factored layers outside the ResNet, by name (see ``surgery``).
    """

    spec: CompressionSpec
    preprocessing: Preprocessing = TORCHVISION
    num_classes: int = 1000
    stride_in_1x1: bool = False
    layout: dict[str, int] = field(default_factory=dict)

    def to_fields(self) -> dict[str, Any]:
        """As JSON has them."""
        fields: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "num_classes": self.num_classes,
            "stride_in_1x1": self.stride_in_1x1,
        }
        return fields | ({"layout": self.layout} if self.layout else {})

    def to_json(self) -> str:
        return json.dumps(self.to_fields())

    @classmethod
    def from_json(cls, text: str) -> "CheckpointInfo":
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits
            raise InputError(f"metadata: expected JSON ({error}); write the checkpoint again") from None
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls, fields: object) -> "CheckpointInfo":
        """Of what ``to_fields`` gives.

        Raises:
            InputError: a field is missing, unknown or makes no sense.
        """
        version = fields.get("version") if isinstance(fields, dict) else fields
        if not isinstance(fields, dict) or isinstance(version, bool) or version not in range(1, FORMAT_VERSION + 1):
            raise InputError(f"metadata: version: expected 1 to {FORMAT_VERSION}, got {version!r}; update norton_det")
        if unknown := sorted(set(fields) - _FIELDS):
            raise InputError(f"metadata: unknown field {unknown[0][:40]!r}; update norton_det")
        classes, stride = fields.get("num_classes"), fields.get("stride_in_1x1")
        if isinstance(classes, bool) or not isinstance(classes, int) or not 0 <= classes <= 1_000_000:
            raise InputError(f"metadata: num_classes: expected 0 or more, got {classes!r}; write the checkpoint again")
        if not isinstance(stride, bool):
            raise InputError(f"metadata: stride_in_1x1: expected true or false, got {stride!r}; write it again")
        layout = fields.get("layout", {})
        if not isinstance(layout, dict) or not all(
            type(rank) is int and 1 <= rank <= 65536 for rank in layout.values()
        ):
            raise InputError(f"metadata: layout: expected layer names with ranks, got {layout!r:.80}; write it again")
        return cls(
            CompressionSpec.from_dict(fields.get("spec")),  # type: ignore[arg-type]
            Preprocessing.from_dict(fields.get("preprocessing")),  # type: ignore[arg-type]
            classes,
            stride,
            layout,
        )


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
    info = CheckpointInfo(spec, model.preprocessing, model.num_classes, model.stride_in_1x1)
    with torch.device("meta"):
        expected = build_from_info(info).state_dict()
    if model.state_dict().keys() != expected.keys():
        raise InputError(f"{path}: expected a network as compress gives it, got a deploy form; save it before fuse()")
    return save_tensors(path, model.state_dict(), info)


def save_tensors(path: str | Path, state: Mapping[str, Tensor], info: CheckpointInfo) -> Path:
    """Write tensors, such as those of a whole detector, with the spec of the ResNet among them; whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    return write_tensors(path, state, info.to_fields())


def read_info(path: str | Path) -> CheckpointInfo | None:
    """What a safetensors file says of itself; ``None`` when norton_det did not write it.

    Raises:
        InputError: the file is missing, truncated, not safetensors, or its metadata is damaged.
    """
    return _info(path, read_fields(path)[0])


def tensor_names(path: str | Path) -> list[str]:
    """Names in a safetensors file."""
    return read_fields(path)[1]


def read_checkpoint(path: str | Path) -> tuple[CheckpointInfo | None, dict[str, Tensor]]:
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


def _info(path: str | Path, fields: dict[str, Any] | None) -> CheckpointInfo | None:
    """Of the description in a file; what others keep beside it there is left aside."""
    if fields is None:
        return None
    with naming(path):
        return CheckpointInfo.from_fields({name: value for name, value in fields.items() if name not in BESIDE})


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
    with torch.device("meta"):
        model = build_from_info(info)
    check_state(state, model.state_dict(), str(path))
    model.to_empty(device="cpu")
    load_state(model, state, str(path))
    return model.eval()


def build_from_info(info: CheckpointInfo) -> NortonResNet:
    """The network that a checkpoint describes, with fresh weights."""
    model = NortonResNet(info.spec, info.num_classes, info.stride_in_1x1)
    model.preprocessing = info.preprocessing
    return model


def load_state(model: NortonResNet, state: dict[str, Tensor], source: str) -> None:
    """Load tensors by name, all or none, converting their float type; ``state`` is untouched.

    Raises:
        InputError: names are missing or left over, or a shape differs; the first of each is named.
    """
    complete = {**_counters(model.state_dict()), **state}
    check_state(complete, model.state_dict(), source)
    model.load_state_dict(complete)


def check_state(state: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    """Compare names and shapes of a state with those expected.

    Missing ``num_batches_tracked`` counters, which older files lack, are added to ``state`` as zeros.

    Raises:
        InputError: they differ; one line with counts and the first case.
    """
    for name, counter in _counters(expected).items():
        state.setdefault(name, counter)
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    if missing or unexpected:
        told = [
            f"{len(names)} {kind} (first: {names[0]})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise InputError(f"{source}: tensors: {', '.join(told)}; use weights of this network")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{source}: {name}: expected shape {tuple(tensor.shape)}, got {tuple(state[name].shape)}; "
                "the rank or ratios are of another network"
            )


def _counters(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch counters of a state dict, at zero."""
    return {name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}

"""Weights files of every origin, read once, and nothing in them is run.

They are known by their content, not by the ending of their name:

- state dicts of torchvision's ResNet-18 to -152 and of torchvision's and Detectron2's R-CNNs (torch or safetensors
  file; fp16, bf16, fp32, fp64; names of any version), below whatever wraps them (see ``unwrap``);
- norton checkpoints, and the files of a training;
- the pickles of Detectron2's and Detectron's model zoos, ImageNet models and detectors;
- the checkpoints of the NORTON release;
- ``torchvision://resnet50``, downloaded by torchvision, or ``zoo://dense/mask_rcnn``, by ``norton_det.checkpoint.zoo``.

Of networks of other projects (``models.detector_keys.FAMILIES``) the ResNet is read. What a network expects at its
input and where its stride sits cannot be seen in a tensor; see ``conventions``.
"""

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models.description import NetworkInfo
from ..models.detector_keys import Family, current_names, family_of, split_prefix
from ..models.keys import ResNetPart, find_resnet
from ..models.spec import CompressionSpec
from ..models.spec_from_state import spec_from_state
from ..utils.errors import InputError, first_line, naming
from ..utils.files import read_whole
from .conventions import conventions
from .digest import DIGEST_KEY, check_beside
from .safe_pickle import read_arrays
from .sources import download, is_download, local
from .tensor_file import METADATA_KEY, read_safetensors
from .torch_file import LEGACY, ZIP, read_torch
from .unwrap import unwrap

logger = logging.getLogger(__name__)
DETECTOR_KEY = "detector"  # what a file says of a detector beside its network; each stack has fields of its own there
DETECTOR_IN_TORCH = f"{METADATA_KEY}_detector"  # the same as JSON text, in a torch file
BESIDE = (DIGEST_KEY, DETECTOR_KEY)  # fields of a description that are not of ``NetworkInfo``
_WHAT = "weights (a torch, safetensors or Detectron2 .pkl file)"
_MAX_CLASSES = 1_000_000
_READ: ContextVar[dict[tuple[object, ...], "OpenedWeights"] | None] = ContextVar("files read", default=None)


@dataclass(frozen=True, eq=False)
class OpenedWeights:
    """All that is in a weights file. It may be shared: its tensors are to be copied, not changed.

    Attributes:
        source: the file as it was named, for messages.
        state: the tensors of its network, as they are stored, on the CPU; by names without what wraps the network.
        fields: what stands beside them, such as the author, or the state of a training.
        described: what the file says of its network, where norton_det wrote it; else ``None``.
        outside: names of tensors of the file that are no part of the network.
    """

    source: str
    state: dict[str, Tensor]
    fields: dict[str, Any]
    described: NetworkInfo | None = None
    outside: tuple[str, ...] = ()

    @cached_property
    def resnet(self) -> ResNetPart:
        """Its ResNet, in torchvision's names, and the rest.

        Raises:
            InputError: there is none in it, or one with a layer of another network.
        """
        with naming(self.source):
            return find_resnet(self.state)

    @cached_property
    def info(self) -> NetworkInfo:
        """What the network is: as the file says, else by its tensors and its origin.

        Raises:
            InputError: see ``resnet``; shapes of another network, or other ones than the file says.
        """
        if self.described is not None:
            return self.described
        rank, ratios = self.fields.get("rank"), self.fields.get("compress_rate")
        with naming(self.source):
            if self.family is not None and not self.family.readable:
                raise InputError(f"expected weights of known names, got {self.family.name}; {self.family.mend}")
            resnet = self.resnet
            spec = spec_from_state(
                resnet.state,
                rank if isinstance(rank, int) and not isinstance(rank, bool) else None,
                ratios if isinstance(ratios, str | list | tuple) else None,
            )
            preprocessing, stride_in_1x1, assumed = conventions(resnet, self.around, self.fields)
            if assumed and self.family is not None and "MM" in self.family.name:
                stride = "1x1" if stride_in_1x1 else "3x3"
                logger.warning(
                    "%s: does not say what input it wants; assumed: %s, stride in the %s",
                    self.source,
                    preprocessing,
                    stride,
                )
            return NetworkInfo(spec, preprocessing, _classes(resnet.state, spec), stride_in_1x1)

    @cached_property
    def family(self) -> Family | None:
        """The project whose network it is, where only its ResNet can be used; ``None`` for all others."""
        if self.described is not None:
            return None
        return family_of(self.state, self.outside)

    @property
    def stack(self) -> str:
        """Whose detector it is: detectron2 or torchvision; empty for a ResNet alone, and for other projects'."""
        role = split_prefix(self.resnet.prefix)[1]
        if self.family is not None or self.resnet.naming == "caffe2":
            return ""
        if role == "backbone." and not any(name.startswith("proposal_generator.") for name in self.around):
            return ""
        return {"": "", "backbone.body.": "torchvision"}.get(role, "detectron2")

    @property
    def around(self) -> dict[str, Tensor]:
        """Tensors of a detector outside its ResNet, by the names that its stack has today."""
        wrapper, role = split_prefix(self.resnet.prefix)
        around = {name.removeprefix(wrapper): tensor for name, tensor in self.resnet.rest.items()}
        return current_names(around) if role == "backbone.body." else around

    @property
    def detector(self) -> dict[str, Tensor]:
        """All tensors of a detector, those of its ResNet by torchvision's names below ``backbone.``."""
        role = split_prefix(self.resnet.prefix)[1]
        return self.around | {f"{role}{name}": tensor for name, tensor in self.resnet.state.items()}

    @property
    def layout(self) -> dict[str, int] | None:
        """Ranks of the factored layers around the ResNet of a detector that norton_det wrote; ``None`` for a backbone,
        or weights of another origin.

        Raises:
            InputError: the file says other layers than it holds.
        """
        if self.described is None or not any("roi_heads." in name for name in self.state):
            return None
        factors = (re.fullmatch(r"(.+?)(?:\.conv)?\.(?:pointwise|first)\.weight", name) for name in self.resnet.rest)
        # a wrapped layer has one .conv more, and rpn_head.conv has one in its name: both are left out, on both sides
        names = {match[1].removesuffix(".conv") for match in factors if match}
        if {name.removesuffix(".conv") for name in self.described.layout} != names:
            raise InputError(
                f"{self.source}: metadata: layout does not name the factored layers in it; write the file again"
            )
        return self.described.layout

    @property
    def kind(self) -> str:
        """What it is, a short phrase for people."""
        resnet, stack = self.resnet, self.stack
        if is_download(self.source):
            return self.source
        if self.family is not None:
            return f"backbone of {self.family.name}"
        if self.described is not None:
            return "backbone of a norton detector" if stack else "norton checkpoint"
        if resnet.released:
            return "backbone of a NORTON release detector" if stack else "NORTON release checkpoint"
        if resnet.naming == "caffe2":
            return "Caffe2 (MSRA) weights"
        if stack:
            return f"backbone of a {'torchvision' if stack == 'torchvision' else 'Detectron2'} detector"
        return "Detectron2 state dict" if resnet.naming == "detectron2" else "torchvision state dict"


def open_weights(source: "str | Path | OpenedWeights") -> OpenedWeights:
    """Read a weights file, whole and once; its digest, checksum or ``FILE.sha256`` is held against its content.

    Args:
        source: a file, ``torchvision://NAME`` or ``zoo://NAME``; what is opened already is given back.

    Raises:
        InputError: no such file, empty, truncated, changed, of another format, or it needs something to be run.
    """
    if isinstance(source, OpenedWeights):
        return source
    kept = _READ.get()
    if kept is None:
        return _open(source)
    key = (str(source), *_identity(source))
    if key not in kept:
        kept[key] = _open(source)
    return kept[key]


@contextmanager
def reading_once() -> Iterator[None]:
    """What ``open_weights`` has read is kept while the block runs: a file that has not changed is not read again.

    For work that knows its weights by a path, as Detectron2's configs do.
    """
    if _READ.get() is not None:
        yield
        return
    token = _READ.set({})
    try:
        yield
    finally:
        _READ.reset(token)


def _identity(source: str | Path) -> tuple[int, ...]:
    """Of a file as it is now; empty for an address."""
    try:
        status = os.stat(source)
    except (OSError, ValueError):
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _open(address: str | Path) -> OpenedWeights:
    if is_download(address):
        name, state = download(address)
        return OpenedWeights(name, state, {})
    source, file = str(address), Path(local(address))
    data = read_whole(file, _WHAT)
    if data[8:9] == b"{":  # safetensors: the length of a header, then JSON
        description, state = read_safetensors(file, data)
        if description is None:
            return _opened(source, dict(state))
        beside = {name: description.pop(name) for name in BESIDE if name in description}
        with naming(source):
            return OpenedWeights(source, state, beside, NetworkInfo.from_fields(description))
    if data.startswith((ZIP, LEGACY)):
        content = read_torch(file, data)
    elif data[:1] == b"\x80" or file.suffix in (".pkl", ".pickle"):
        check_beside(file, data)
        content = read_arrays(file, data)
    else:
        head = data[:64]
        what = "text" if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head) else "an unknown format"
        raise InputError(f"{file}: expected {_WHAT}, got {what} that starts {head[:16]!r}; download the file again")
    return _opened(source, content)


def _opened(source: str, content: dict[Any, Any]) -> OpenedWeights:
    """The network in the dict of a file; what was passed over for it is told."""
    network = unwrap(content)
    if network.copies and METADATA_KEY not in network.fields:  # our own trainings keep their average
        taken, *left = (
            f"below {prefix[:-1][:60]}" if prefix else "without a prefix"
            for prefix in (network.wrapper, *network.copies)
        )
        logger.warning("%s: holds several networks; taken: that %s, left: that %s", source, taken, ", ".join(left))
    text, detector = network.fields.pop(METADATA_KEY, None), network.fields.pop(DETECTOR_IN_TORCH, None)
    if detector is not None:
        network.fields[DETECTOR_KEY] = _json_of(source, detector)
    with naming(source):
        described = None if text is None else NetworkInfo.from_json(str(text))
        return OpenedWeights(source, network.state, network.fields, described, network.outside)


def _json_of(source: str, text: object) -> Any:
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: detector: expected JSON ({first_line(error)}); write the file again") from None


def _classes(state: dict[str, Tensor], spec: CompressionSpec) -> int:
    weight, inputs = state.get("fc.weight"), spec.architecture.outputs[3]
    if weight is None:
        return 0
    if weight.ndim != 2 or not 1 <= weight.shape[0] <= _MAX_CLASSES or weight.shape[1] != inputs:
        raise InputError(
            f"fc.weight: expected shape (classes, {inputs}), got {tuple(weight.shape)}; remove this classifier"
        )
    return weight.shape[0]

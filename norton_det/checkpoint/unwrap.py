"""The network among all that a training saved: which tensors are its, by what names, and what stands beside them.

A file may keep them in dicts inside each other (``{"checkpoint": {"state_dict": ...}}``) and put words before every
name (``module.``, ``_orig_mod.``, ``model.``). Both are one thing here: all tensors get dotted names that begin with
the keys of their dicts, the ResNet is found by the names of its first block, and what stands before its detector, or
before itself, is the *wrapper*, which is taken off.

Of several networks in a file those that share their tensors are one. A copy (``COPIES``: a moving average, MoCo's key
encoder, BYOL's target) is passed over where the trained network is there. Of a student and a teacher of the same
shapes the teacher is taken, which DINO and the semi-supervised detectors evaluate and publish. From whatever else there
are two of none is chosen: ``find_resnet`` refuses such a file.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.detector_keys import split_prefix
from ..models.keys import resnets_in

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema", "model_state", "blobs")  # without a ResNet
COPIES = {"ema", "momentum", "k", "key", "target", "swa", "averaged", "average", "avg", "shadow"}
DEPTH = 6
"""The number of dicts inside each other that are looked into."""


@dataclass(frozen=True)
class Unwrapped:
    """The network of a file.

    Attributes:
        state: its tensors, by names without their wrapper.
        fields: what stands beside it, in the dicts around it.
        wrapper: what was taken off, "" for nothing.
        outside: names of tensors that are no part of it.
        copies: wrappers of networks that were passed over for it.
    """

    state: dict[str, Tensor]
    fields: dict[str, Any]
    wrapper: str = ""
    outside: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()


def unwrap(content: dict[Any, Any]) -> Unwrapped:
    """The network in the dict of a file; with none, or several, the tensors among which it was looked for."""
    flat = dict(_flatten(content))
    prefixes = list(resnets_in(flat))
    if not prefixes:
        return _without_resnet(content, flat)
    taken = _choose(flat, prefixes)
    passed_over = [prefix for prefix in prefixes if prefix not in taken] if len(taken) == 1 else []
    wrapper = split_prefix(taken[0])[0] if len(taken) == 1 else _common_wrapper(taken)
    copies = tuple(copy for prefix in passed_over if not wrapper.startswith(copy := split_prefix(prefix)[0]))
    names = [name for name in flat if not (copies and name.startswith(copies))]
    state = {name.removeprefix(wrapper): flat[name] for name in names if name.startswith(wrapper)}
    outside = tuple(name for name in names if not name.startswith(wrapper))
    return Unwrapped(state, _fields(content, wrapper), wrapper, outside, copies)


def _choose(flat: dict[str, Tensor], prefixes: list[str]) -> list[str]:
    """The prefix of the network to take; of all that come into question where that is not one."""
    owners: dict[object, str] = {}
    for prefix, name in _first_convolutions(flat):
        memory = _memory(flat[name]) or prefix
        owners[memory] = min(owners.get(memory, prefix), prefix, key=len)
    distinct = [prefix for prefix in prefixes if prefix in owners.values()]
    common = set.intersection(*map(_words, prefixes))
    words = {prefix: _words(prefix) - common for prefix in distinct}
    trained = [prefix for prefix in distinct if not words[prefix] & COPIES] or distinct
    teachers = [prefix for prefix in trained if "teacher" in words[prefix]]
    pair = len(trained) == 2 and len(teachers) == 1 and any("student" in words[prefix] for prefix in trained)
    return teachers if pair and _shapes(flat, trained[0]) == _shapes(flat, trained[1]) else trained


def _first_convolutions(flat: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Prefix of a ResNet and name of its first convolution, of each."""
    for name in flat:
        for prefix in resnets_in([name]):
            yield prefix, name


def _shapes(flat: dict[str, Tensor], prefix: str) -> dict[str, torch.Size]:
    return {name.removeprefix(prefix): tensor.shape for name, tensor in flat.items() if name.startswith(prefix)}


def _common_wrapper(prefixes: Sequence[str]) -> str:
    """What all prefixes begin with, to the last dot in it."""
    first, last = min(prefixes), max(prefixes)
    equal = next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind(".", 0, equal) + 1]


def _flatten(content: dict[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by dotted names; a dict that is in several places is in the first alone."""
    visited: set[int] = set()

    def walk(entries: dict[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
        visited.add(id(entries))
        for key, value in entries.items():
            if isinstance(value, Tensor) and isinstance(key, str):
                yield prefix + key, value
            elif isinstance(value, dict) and isinstance(key, str) and depth > 1 and id(value) not in visited:
                yield from walk(value, f"{prefix}{key}.", depth - 1)

    return walk(content, "", DEPTH)


def _memory(tensor: Tensor) -> int:
    """Where a tensor has its values; 0 for one that has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a sparse one
        return 0


def _words(prefix: str) -> set[str]:
    return set(re.sub(r"([a-z])([A-Z])", r"\1_\2", prefix).lower().replace(".", "_").split("_"))


def _fields(content: dict[Any, Any], wrapper: str) -> dict[str, Any]:
    """All but tensors in the dicts that lead to a network, without these dicts; the outermost come first."""
    fields: dict[str, Any] = {}
    entries: Any = content
    while isinstance(entries, dict):
        inside = next((key for key in entries if _leads_to(key, entries[key], wrapper)), None)
        beside = {str(key): value for key, value in entries.items() if key != inside and not isinstance(value, Tensor)}
        fields = beside | fields
        if inside is None:
            break
        wrapper, entries = wrapper[len(inside) + 1 :], entries[inside]
    return fields


def _leads_to(key: object, value: object, wrapper: str) -> bool:
    return isinstance(key, str) and isinstance(value, dict) and wrapper.startswith(f"{key}.")


def _without_resnet(content: dict[Any, Any], flat: dict[str, Tensor]) -> Unwrapped:
    for key in WRAPPERS:
        wrapped = content.get(key)
        if isinstance(wrapped, dict) and any(isinstance(value, Tensor) for value in wrapped.values()):
            return Unwrapped(_tensors(wrapped), _fields(content, f"{key}."), f"{key}.")
    return Unwrapped(_tensors(content) or flat, _fields(content, ""))


def _tensors(entries: dict[Any, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}

"""Detector checkpoints in Detectron2's two forms, with the spec inside: ``.pth`` (trainer) and ``.safetensors``."""

import functools
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint.checkpoint import read_info, read_tensors, tensor_names
from ..checkpoint.sources import read_content
from ..checkpoint.tensor_file import METADATA_KEY
from ..models.description import NetworkInfo
from ..utils.errors import InputError, first_line, naming
from ..utils.files import require_file

logger = logging.getLogger(__name__)
TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """A ``.pth`` file as a dict with the key ``model``; no code in it is run.

    Raises:
        InputError: missing, truncated, not such a file, or one that would need code to be run.
    """
    content = read_content(path)
    return content if isinstance(content.get("model"), dict) else {"model": content}


def read_checkpoint_info(path: str | Path) -> NetworkInfo | None:
    """What a norton checkpoint, ``.safetensors`` or ``.pth``, says of itself; ``None`` for all other weights."""
    suffix = Path(path).suffix
    if suffix == ".safetensors":
        return read_info(path)
    if suffix not in TORCH_SUFFIXES or "://" in str(path):
        return None
    text = glance(path).description
    if text is None:
        return None
    with naming(path):
        return NetworkInfo.from_json(text)


class Glance(NamedTuple):
    """What is in a ``.pth`` file beside the values: the description of a norton checkpoint, names of the tensors, and
    the iteration in which a trainer saved it.
    """

    description: str | None
    names: tuple[str, ...]
    iteration: int | None


def glance(path: str | Path) -> Glance:
    """Read a ``.pth`` file and check it; one that has not changed since is not read again.

    Raises:
        InputError: as ``read_torch_file``.
    """
    found = require_file(path, "weights of a detector").stat()
    return _glance(str(path), (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _glance(path: str, _: tuple[int, ...]) -> Glance:
    content = read_torch_file(path)
    text, iteration = content.get(METADATA_KEY), content.get("iteration")
    names = tuple(str(name) for name in content["model"])
    return Glance(None if text is None else str(text), names, iteration if type(iteration) is int else None)


def read_layout(path: str | Path) -> dict[str, int] | None:
    """Ranks of the factored layers around the ResNet of a detector that norton_det wrote; ``None`` for a backbone, or
    weights of another origin.
    """
    info = read_checkpoint_info(path)
    if info is None:
        return None
    names = tensor_names(path) if Path(path).suffix == ".safetensors" else glance(path).names
    if not any("roi_heads." in name for name in names):
        return None
    factors = (
        re.fullmatch(r"(?!backbone\.bottom_up\.)(.+?)(?:\.conv)?\.(?:pointwise|first)\.weight", n) for n in names
    )
    found = {match[1] for match in factors if match}
    if {name.removesuffix(".conv") for name in info.layout} != {name.removesuffix(".conv") for name in found}:
        raise InputError(f"{path}: metadata: layout does not name the factored layers in it; write the file again")
    return info.layout


def read_detector_file(path: str | Path) -> dict[str, Any]:
    """Checkpoint content for a Detectron2 ``Checkpointer``: the key ``model`` and what the trainer added."""
    if Path(path).suffix == ".safetensors":
        return {"model": read_tensors(path)}
    return read_torch_file(path)


def newest_checkpoint(folder: str | Path) -> str:
    """The newest checkpoint of a trainer in a folder that is whole; empty when there is none.

    That is the one which ``last_checkpoint`` names, unless a later one of the same run is there, or it is damaged. What
    is passed over, and a ``last_checkpoint`` that names another file, are told.
    """
    files = sorted(Path(folder).glob("model_*.pth"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    tag, named = Path(folder) / "last_checkpoint", ""
    if tag.is_file():
        named = tag.read_text(errors="replace").strip()[:200]
    position = next((index for index, file in enumerate(files) if file.name == named), len(files))
    tagged = _iteration(files[position]) if position < len(files) else None
    order = files if tagged is None else [file for file in files[:position] if (_iteration(file) or -1) > tagged]
    newest = next((file for file in order if _iteration(file) is not None), None)
    if tagged is not None:
        newest = newest or files[position]
    if newest is not None and named != newest.name:
        logger.warning("%s names %r; the newest whole checkpoint is %s", tag, named, newest)
    return "" if newest is None else str(newest)


@functools.lru_cache(maxsize=64)
def _tell(message: str) -> None:
    logger.warning("%s", message)


def _iteration(file: Path) -> int | None:
    """That a trainer saved a checkpoint in; ``None`` for other files and, with a word, for damaged ones."""
    try:
        return glance(file).iteration
    except InputError as error:
        _tell(f"Passed over: {first_line(error, 300)}")
        return None

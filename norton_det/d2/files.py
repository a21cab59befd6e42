"""Weights that a Detectron2 config names, and the checkpoints of a trainer."""

import functools
import logging
from pathlib import Path

from ..checkpoint.opened import OpenedWeights, open_weights
from ..utils.errors import InputError, first_line
from ..utils.files import require_file

logger = logging.getLogger(__name__)


def open_file(weights: str) -> OpenedWeights | None:
    """The file of ``MODEL.WEIGHTS``; ``None`` without, and for addresses: what is downloaded is none of norton_det's.

    Raises:
        InputError: see ``open_weights``.
    """
    return open_weights(weights) if weights and "://" not in weights else None


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
def _warn_once(message: str) -> None:
    """Log a warning, the same one once."""
    logger.warning("%s", message)


def _iteration(file: Path) -> int | None:
    """The iteration that a trainer saved a checkpoint in; ``None`` for other files, for damaged ones with a warning."""
    try:
        status = require_file(file, "weights of a detector").stat()
        return _read_iteration(str(file), (status.st_ino, status.st_size, status.st_mtime_ns))
    except InputError as error:
        _warn_once(f"Passed over: {first_line(error, 300)}")
        return None


@functools.lru_cache(maxsize=64)
def _read_iteration(path: str, _: tuple[int, ...]) -> int | None:
    """The iteration of a file whose content is whole; a file is not read again while it stays the same."""
    iteration = open_weights(path).fields.get("iteration")
    return iteration if type(iteration) is int else None

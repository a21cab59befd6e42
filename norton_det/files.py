"""Files that are whole or not there: written beside the target, flushed, then renamed over it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; it becomes ``path`` when the block ends well and vanishes otherwise.

    Raises:
        InputError: the folder cannot be made or written.
    """
    target = Path(path)
    if _is_folder(target):
        raise InputError(f"{target}: expected a file to write, got a folder; give a file name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(target)!r}: cannot write here ({reason}); choose another place") from None
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise InputError(f"{target}: could not be written ({error.strerror or error}); free some space") from None
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: str | Path) -> None:
    """Refuse a file that could not be written at the end of long work. Nothing is left behind.

    Raises:
        InputError: the name is that of a folder, or its folder cannot be written or made.
    """
    target = Path(path)
    if _is_folder(target):
        raise InputError(f"{target}: expected a file to write, got a folder; give a file name")
    parent = target.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not _is_folder(parent):
        raise InputError(f"{target}: expected a file in a folder, but {parent} is a file; choose another place")
    try:
        handle, name = tempfile.mkstemp(prefix=".norton_det.", dir=parent)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(target)!r}: cannot write in {parent} ({reason}); choose another place") from None
    os.close(handle)
    Path(name).unlink()


def require_file(path: str | Path, what: str) -> Path:
    """``path`` as an existing, non-empty file.

    Raises:
        InputError: it is missing, a folder, or empty.
    """
    file = Path(path)
    if _is_folder(file):
        raise InputError(f"{file}: expected {what}, got a folder; name the file in it")
    if not os.path.isfile(file):  # unlike Path.is_file, False for a name that the system refuses
        raise InputError(f"{file}: expected {what}, found no such file; check the path")
    if file.stat().st_size == 0:
        raise InputError(f"{file}: expected {what}, got an empty file; download or write it again")
    return file


def _is_folder(path: Path) -> bool:
    """Whether it is a folder; unlike ``Path.is_dir``, False for a name that the system refuses (too long)."""
    return os.path.isdir(path)

"""Files that are whole or not there: written beside the target, flushed, then renamed over it.

What a killed program leaves is a file ``.NAME.XXXX.part``; the next one that writes the same name removes it. A lock
that the system gives up with the process tells such a file from one that is being written.
"""

import contextlib
import errno
import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, why_not_written

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing is cleaned up
    fcntl = None  # type: ignore[assignment]

LONGEST_NAME = 255  # bytes, of all usual file systems


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; it becomes ``path`` when the block ends well and vanishes otherwise.

    Raises:
        InputError: the folder cannot be made or written.
    """
    target = Path(path)
    if _is_folder(target):
        raise InputError(f"{target}: expected a file to write, got a folder; give a file name")
    if os.path.exists(target) and not os.path.isfile(target):  # /dev/null and its like stay what they are
        yield target
        return
    target = Path(os.path.realpath(target)) if os.path.islink(target) else target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(target)
        handle, name = _make_part(target)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(target)!r}: cannot write here ({reason}); choose another place") from None
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask)
        _sync(temporary)
        temporary.replace(target)
        with contextlib.suppress(OSError):  # not every file system has it for folders
            _sync(target.parent)
    except OSError as error:
        raise InputError(f"{target}: could not be written {why_not_written(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8) that is whole or not there.

    Raises:
        InputError: see ``atomic_path``.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def hold_folder(folder: str | Path, what: str) -> Iterator[None]:
    """Keep a folder for this process alone while the block runs; a process that is killed gives it up.

    Raises:
        InputError: another process holds it, or it cannot be written.
    """
    from filelock import FileLock, Timeout  # here, as its import takes time

    path = Path(folder) / ".lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"{folder}: expected a folder for {what} alone, another one writes here; choose another"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror}); choose another place") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes it itself
            path.unlink()  # while it is locked: whoever has it open by now sees that it is gone
        lock.release()


def _make_part(target: Path) -> tuple[int, str]:
    """A locked temporary file beside ``target``: its descriptor and name."""
    while True:
        handle, name = tempfile.mkstemp(prefix=_beginning(target), suffix=".part", dir=target.parent)
        with contextlib.suppress(FileNotFoundError):
            if _lock(handle) and os.path.samestat(os.fstat(handle), os.stat(name)):
                return handle, name
        os.close(handle)  # another process took it for one that was left, before it was locked


def _beginning(target: Path) -> str:
    """Of the names of temporary files: the target's, cut where the system would find the whole too long.

    Raises:
        OSError: the target's own is too long.
    """
    name = target.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    while len(os.fsencode(name)) > LONGEST_NAME - len("..XXXXXXXX.part"):
        name = name[:-1]
    return f".{name}."


def _lock(handle: int) -> bool:
    """Lock an open file for this process. Returns whether nobody else has; where locks do not work, nobody has."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _remove_left(target: Path) -> None:
    """Remove what killed programs have left of ``target``."""
    if fcntl is None:
        return
    for leftover in target.parent.glob(f"{glob.escape(_beginning(target))}????????.part"):
        with contextlib.suppress(OSError):
            handle = os.open(leftover, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while it is being written
                leftover.unlink()
            finally:
                os.close(handle)


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        _beginning(target)
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


def read_whole(path: str | Path, what: str) -> bytes:
    """The bytes of an existing, non-empty file.

    Raises:
        InputError: see ``require_file``; or it cannot be read.
    """
    file = require_file(path, what)
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check its permissions") from None


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder; unlike ``Path.is_dir``, False for a name that the system refuses (too long)."""
    return os.path.isdir(path)

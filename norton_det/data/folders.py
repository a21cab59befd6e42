"""Folders that are whole or not there: written beside the target, then renamed to it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.errors import InputError, why_not_written


def is_free(root: Path) -> bool:
    """Whether nothing is at ``root`` but perhaps an empty folder."""
    if root.is_symlink() or root.exists():
        return root.is_dir() and not root.is_symlink() and not any(root.iterdir())
    return True


@contextmanager
def atomic_folder(root: Path) -> Iterator[Path]:
    """A temporary folder beside ``root``; it becomes ``root`` when the block ends well and vanishes otherwise.

    Raises:
        InputError: the folder cannot be made or written, or something was put there meanwhile.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".part", dir=root.parent))
    except OSError as error:
        raise InputError(f"{root}: cannot write here ({error.strerror}); choose another folder") from None
    try:
        temporary.chmod(0o755)
        yield temporary
        temporary.replace(root)
    except OSError as error:
        raise InputError(f"{root}: could not be written {why_not_written(error, 'folder')}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

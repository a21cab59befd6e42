"""The tests, laid out as the package is; what is of the whole repository stands beside this file."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def find_shared() -> Path | None:
    """The folder with ``data/`` and ``weights/``: ``NORTON_DET_DATA``, else ``shared`` beside the repository."""
    named = os.environ.get("NORTON_DET_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    return folder if (folder / "data").is_dir() and (folder / "weights").is_dir() else None

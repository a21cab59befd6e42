"""Frames from what a user names: pictures, video files, cameras and streams."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data.decode import read_image
from ..data.images import SUFFIXES, find_images
from ..utils.errors import InputError
from ..utils.files import require_file
from .camera import Camera
from .capture import URLS, open_stream, property_of
from .film import VideoFile
from .frames import Frame, Source

PICTURE = 0.5  # seconds that each is shown in a video of pictures


class Pictures(Source):
    """Picture files in order; those that cannot be read are named in ``skipped``, after ``left_out``."""

    video = False

    def __init__(self, files: Sequence[Path], left_out: Sequence[str] = ()) -> None:
        super().__init__(files[0].name if len(files) == 1 else f"{len(files)} pictures", None, len(files))
        self.files, self.skipped = list(files), list(left_out)

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        for file in self.files:
            try:
                image = read_image(file)
            except InputError as error:
                self.skipped.append(str(error).rpartition("; ")[0] + "; give another")
                continue
            yield Frame(np.ascontiguousarray(image[:, :, ::-1]), index, PICTURE * index, file.name, PICTURE)
            index += 1

    def close(self) -> None:
        """Each file was closed when it had been read."""


def open_source(source: str | int | Sequence[str]) -> Source:
    """Frames of what a user names.

    Args:
        source: a number of a camera, a device (``/dev/video0``), a URL, a video file, a folder of pictures, or
            picture files and patterns of them.

    Raises:
        InputError: nothing there, or not readable; for a camera, with those that there are.
    """
    if isinstance(source, int):
        return Camera(source)
    names = [source] if isinstance(source, str) else list(source)
    if len(names) == 1:
        name = os.path.realpath(names[0]) if names[0].startswith("/dev/") else names[0]
        if name.isdigit() and not os.path.exists(name):
            return Camera(int(name))
        if name.startswith("/dev/video") and name[10:].isdigit():
            return Camera(int(name[10:]))
        if name.lower().startswith(URLS):
            return _from_url(name)
        pattern = glob.has_magic(name) and not os.path.isfile(name)
        if not os.path.isdir(name) and Path(name).suffix.lower() not in SUFFIXES and not pattern:
            require_file(name, "a video, picture, folder, camera number or URL")
            return VideoFile(name)
    left_out = [line for name in names if os.path.isdir(name) and (line := _left_out(name))]
    return Pictures(_picture_files(names), left_out)


def _picture_files(names: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for name in names:
        if os.path.isdir(name):
            files += find_images(name)
        elif os.path.isfile(name):
            files.append(Path(name))
        elif matches := [Path(match) for match in sorted(glob.glob(os.path.expanduser(name), recursive=True))]:
            files += [match for match in matches if match.is_file()]
        else:
            raise InputError(f"{name}: expected a picture, folder or pattern, found no such file; check the path")
    if not files:
        raise InputError(f"{names[0]}: expected pictures, found none; check the pattern")
    return files


def _left_out(folder: str) -> str:
    """One line on the files of a folder that are passed over, hidden ones apart; empty where there are none."""
    others = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
    kinds = Counter(path.suffix.lower() or "no ending" for path in others if path.suffix.lower() not in SUFFIXES)
    told = ", ".join(sorted(kinds)[:5]) + (", ..." if len(kinds) > 5 else "")
    if not kinds:
        return ""
    return f"{folder}: left out {kinds.total()} files not named as pictures ({told})"


def _from_url(url: str) -> Source:
    """A video over HTTP that knows its length is a file; other URLs are live."""
    capture = open_stream(url)
    if url.lower().startswith("http") and property_of(capture, "FRAME_COUNT"):
        capture.release()
        return VideoFile(url)
    return Camera(url, capture=capture)

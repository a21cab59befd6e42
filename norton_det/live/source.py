"""Frames from pictures, video files, cameras and streams, as OpenCV decodes them (rotation honoured, no audio).

Pictures and video files give every frame in order. A camera or a stream is read by a thread of its own and gives the
newest frame, so that a slow detector shows what is there now; a lost one is opened again a few times.
"""

import contextlib
import glob
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from ..data.images import SUFFIXES, find_images, read_image
from ..errors import InputError, first_line
from ..files import require_file

BACK_OFF = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a lost camera is opened again
COUNTED = (".mp4", ".m4v", ".mov", ".avi")  # containers that count frames; others are guessed from their length
TIMEOUT_MS = 10_000  # of a stream, to open and to read
URLS = ("http://", "https://", "rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://")
NEVER_OPENED = "expected a video, got {0}; check it in a player, or convert it"


class SourceLost(InputError):
    """A camera or stream that has gone and does not come back."""


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: (H, W, 3), BGR, uint8.
        index: its number, from 0; a live source leaves out those that nobody waited for.
        seconds: when it is shown, from the start of the source.
        name: of the file, for pictures.
    """

    image: np.ndarray
    index: int
    seconds: float
    name: str = ""


class Source:
    """An iterable of frames.

    Attributes:
        name: for the user.
        fps: frames a second that the source says it has; ``None`` for pictures, and where it does not say.
        count: how many frames it says it has; ``None`` for live ones.
        live: whether frames come when they like.
        video: whether the frames belong to one video.
        files: that the frames are read from.
        stopped: set it, and a live source ends within a fraction of a second.
        skipped: what could not be read, one line each.
    """

    live = False
    video = True

    def __init__(self, name: str, fps: float | None = None, count: int | None = None) -> None:
        self.name, self.fps, self.count = name, fps, count
        self.skipped: list[str] = []
        self.files: list[Path] = []
        self.stopped = False

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the device or file."""


class Pictures(Source):
    """Picture files in order; those that cannot be read are named in ``skipped``."""

    video = False

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(files[0].name if len(files) == 1 else f"{len(files)} pictures", None, len(files))
        self.files = list(files)

    def __iter__(self) -> Iterator[Frame]:
        for index, file in enumerate(self.files):
            try:
                image = np.asarray(ImageOps.exif_transpose(read_image(file)))
            except InputError as error:
                self.skipped.append(str(error))
                continue
            yield Frame(np.ascontiguousarray(image[:, :, ::-1]), index, float(index), file.name)


class VideoFile(Source):
    """Every frame of a video file; one that ends early is named in ``skipped``."""

    def __init__(self, path: str, capture: Any = None) -> None:
        self.capture = capture or _open_file(path)
        fps, count = _property(self.capture, "FPS"), _property(self.capture, "FRAME_COUNT")
        super().__init__(path, fps, int(count) if count else None)
        self.files = [Path(path)]
        self._first = self.capture.read()
        if not self._first[0]:
            self.close()
            declared = f"0 of {self.count} frames" if self.count else "no frame"
            raise InputError(f"{path}: " + NEVER_OPENED.format(f"{declared} that can be read"))

    def __iter__(self) -> Iterator[Frame]:
        (good, image), index = self._first, 0
        while good:
            yield Frame(image, index, index / (self.fps or 25.0))
            good, image = self.capture.read()
            index += 1
        if self.count and index < self.count and self.name.lower().endswith(COUNTED):
            self.skipped.append(f"{self.name}: read {index} of {self.count} declared frames; the rest is damaged")

    def close(self) -> None:
        self.capture.release()


class Camera(Source):
    """A camera or a stream: the newest frame, read by a thread of its own.

    Raises:
        SourceLost: while iterating, when it has gone and does not come back.
    """

    live = True

    def __init__(self, target: int | str, back_off: Sequence[float] = BACK_OFF, capture: Any = None) -> None:
        self.target, self.back_off = target, back_off
        self.capture = capture or _open_live(target)
        super().__init__(f"camera {target}" if isinstance(target, int) else str(target), _property(self.capture, "FPS"))
        self.reopened = 0
        self._newest: tuple[int, float, np.ndarray] | None = None
        self._lost = ""
        self._stop = threading.Event()
        self._ready = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="capture", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        last, start = -1, None
        while not self.stopped:
            with self._ready:
                if not self._ready.wait_for(lambda: self._lost or self._is_newer(last), timeout=0.2):  # noqa: B023
                    continue
                if not self._is_newer(last):
                    raise SourceLost(self._lost)
                assert self._newest is not None
                last, moment, image = self._newest
            start = moment if start is None else start
            yield Frame(image, last, moment - start)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)  # the thread lets go of the device

    def _is_newer(self, than: int) -> bool:
        return self._newest is not None and self._newest[0] > than

    def _read(self) -> None:
        try:
            lost = self._read_frames()
        except Exception as error:  # OpenCV's own, of a damaged frame
            lost = f"{self.name}: expected frames, got a failure of the decoder ({first_line(error)}); check the source"
        finally:
            self.capture.release()
        with self._ready:
            self._lost = lost
            self._ready.notify_all()

    def _read_frames(self) -> str:
        """Until it is to stop, or no attempt to open the source again has brought a frame; why it ended."""
        index = attempts = 0
        while not self._stop.is_set():
            good, image = self.capture.read()
            if good:
                attempts = 0
                with self._ready:
                    self._newest = (index, time.monotonic(), image)
                    self._ready.notify_all()
                index += 1
                continue
            if attempts == len(self.back_off):
                mend = "plug it in" if isinstance(self.target, int) else "check the address"
                return f"{self.name}: expected frames, got none after {attempts} attempts to open it again; {mend}"
            self.capture.release()
            if self._stop.wait(self.back_off[attempts]):
                break
            attempts += 1
            with contextlib.suppress(InputError):
                self.capture = _open_live(self.target)
                self.reopened += 1
        return f"{self.name}: closed"


def open_source(given: str | int | Sequence[str]) -> Source:
    """Frames of what a user names.

    Args:
        given: a number of a camera, a device (``/dev/video0``), a URL, a video file, a folder of pictures, or
            picture files and patterns of them.

    Raises:
        InputError: nothing there, or not readable; for a camera, with those that there are.
    """
    if isinstance(given, int):
        return Camera(given)
    names = [given] if isinstance(given, str) else list(given)
    if len(names) == 1:
        name = os.path.realpath(names[0]) if names[0].startswith("/dev/") else names[0]
        if name.isdigit():
            return Camera(int(name))
        if name.startswith("/dev/video") and name[10:].isdigit():
            return Camera(int(name[10:]))
        if name.lower().startswith(URLS):
            return _from_url(name)
        pattern = glob.has_magic(name) and not os.path.isfile(name)
        if not os.path.isdir(name) and Path(name).suffix.lower() not in SUFFIXES and not pattern:
            require_file(name, "a video, picture, folder, camera number or URL")
            return VideoFile(name)
    return Pictures(_picture_files(names))


def cameras() -> list[str]:
    """Cameras of this machine, as ``0 (name)``; empty where the system does not list them (it does on Linux)."""
    found = []
    for device in sorted(Path("/dev").glob("video*"), key=lambda path: (len(path.name), path.name)):
        label = Path("/sys/class/video4linux") / device.name / "name"
        number = device.name.removeprefix("video")
        if number.isdigit():
            found.append(f"{number} ({label.read_text().strip()})" if label.is_file() else number)
    return found


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


def _from_url(url: str) -> Source:
    """A video over HTTP that knows its length is a file; other URLs are live."""
    capture = _open_stream(url)
    if url.lower().startswith("http") and _property(capture, "FRAME_COUNT"):
        return VideoFile(url, capture)
    return Camera(url, capture=capture)


def _open_live(target: int | str) -> Any:
    return _open_camera(target) if isinstance(target, int) else _open_stream(target)


def _open_camera(number: int) -> Any:
    import cv2

    listed = cameras()
    there = f"; there are {', '.join(listed)}" if listed else ""
    mend = "plug one in, or give --video-input or --input"
    if number < 0 or (platform.system() == "Linux" and not Path(f"/dev/video{number}").exists()):
        raise InputError(f"camera {number}: expected a camera, found none of that number{there}; {mend}")
    _quiet()
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise InputError(f"camera {number}: expected a camera that opens, it does not{there}; free it, or {mend}")
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def _open_stream(url: str) -> Any:
    import cv2

    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
    _quiet()
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        raise InputError(f"{url}: expected a video stream, none could be opened; check the address in a player")
    return capture


def _open_file(path: str) -> Any:
    import cv2

    _quiet()
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise InputError(f"{path}: " + NEVER_OPENED.format("a file that does not open as one"))
    return capture


def _quiet() -> None:
    """OpenCV and its FFmpeg say what they think of a source on stderr; the user gets one line of ours."""
    import cv2

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _property(capture: Any, name: str) -> float | None:
    """A finite, positive property of a capture; ``None`` where it does not say."""
    import cv2

    value = float(capture.get(getattr(cv2, f"CAP_PROP_{name}")))
    return value if np.isfinite(value) and 0 < value < 1e9 else None

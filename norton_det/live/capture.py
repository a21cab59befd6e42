"""OpenCV's captures: opened with one-line errors."""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import InputError
from ..utils.extras import mend

TIMEOUT_MS = 10_000  # of a stream, to open and to read
WHOLE = "rtsp_flags;prefer_tcp|fflags;discardcorrupt"  # OpenCV's own choice, and no frame that was cut off
URLS = ("http://", "https://", "rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://")


def cameras() -> list[str]:
    """Cameras of this machine, as ``0 (name)``; empty where the system does not list them (it does on Linux)."""
    listed = []
    for device in sorted(Path("/dev").glob("video*"), key=lambda path: (len(path.name), path.name)):
        label = Path("/sys/class/video4linux") / device.name / "name"
        number = device.name.removeprefix("video")
        if number.isdigit():
            listed.append(f"{number} ({label.read_text().strip()})" if label.is_file() else number)
    return listed


def open_live(target: int | str) -> Any:
    return open_camera(target) if isinstance(target, int) else open_stream(target)


def open_camera(number: int) -> Any:
    import cv2

    listed = cameras()
    there = f"; there are {', '.join(listed)}" if listed else ""
    mend = "plug one in, or give --video-input or --input"
    if number < 0 or (platform.system() == "Linux" and not Path(f"/dev/video{number}").exists()):
        raise InputError(f"camera {number}: expected a camera, found none of that number{there}; {mend}")
    _prepare()
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise InputError(f"camera {number}: expected a camera that opens, it does not{there}; free it, or {mend}")
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def open_stream(url: str) -> Any:
    import cv2

    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
    _prepare()
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        raise InputError(f"{url}: expected a video stream, none could be opened; check the address in a player")
    return capture


def open_file(path: str) -> Any:
    import cv2

    _prepare()
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise InputError(
            f"{path}: expected a video, got a file that OpenCV does not open; {mend('av')}, which reads more kinds"
        )
    return capture


def _prepare() -> None:
    """OpenCV and its FFmpeg say what they think of a source on stderr; the user gets one line of ours. What
    FFmpeg knows to be damaged is left out."""
    import cv2

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", WHOLE)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def property_of(capture: Any, name: str) -> float | None:
    """A finite, positive property of a capture; ``None`` where it does not say."""
    import cv2

    value = float(capture.get(getattr(cv2, f"CAP_PROP_{name}")))
    return value if np.isfinite(value) and 0 < value < 1e9 else None

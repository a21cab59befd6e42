"""Where drawn frames go: a video (encoded by PyAV), pictures, or a window."""

import itertools
import os
import platform
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import SUFFIXES
from ..deploy.engines import require_module
from ..errors import InputError
from ..files import atomic_path, require_writable
from .frames import Frame, Source

CODECS = {
    ".mp4": ("libx264", "mpeg4"),
    ".mkv": ("libx264", "mpeg4"),
    ".avi": ("mpeg4", "mjpeg"),
}  # by ending; the first that this machine has
MILLISECONDS = Fraction(1, 1000)


class Sink(ABC):
    """Takes drawn frames.

    Attributes:
        told: one line each about what a user would not expect, such as another codec.
        wanted: whether more frames are wanted; False once the window is closed.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.wanted = True

    @abstractmethod
    def write(self, picture: np.ndarray, frame: Frame) -> None:
        """Take a picture (H, W, 3), BGR, uint8, that was drawn from a frame."""

    def pause(self) -> None:
        """Let the user look at a picture; a video goes on at once."""
        return

    def close(self) -> None:
        """Finish the file; a video is playable then, also after an interruption."""
        return


class VideoSink(Sink):
    """A video with the times that the frames had; written beside its place and renamed when it is closed."""

    def __init__(self, path: Path, fps: float | None, live: bool) -> None:
        super().__init__()
        self.path, self.fps = path, fps or 25.0
        self.timed = live and path.suffix.lower() != ".avi"  # frames keep their times
        if live and not self.timed:
            self.told.append(f"{path}: .avi keeps no times, its frames follow each other at {self.fps:g} a second")
        self._container: Any = None
        self._stream: Any = None
        self._last = -1
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._av = require_module("av", "demo")

    def write(self, picture: np.ndarray, frame: Frame) -> None:
        height, width = (side + side % 2 for side in picture.shape[:2])  # encoders take even sides
        try:
            if self._container is None:
                self._open(height, width)
            if (height, width) != (self._stream.height, self._stream.width):
                picture = _fit(picture, self._stream.height, self._stream.width)
            even = np.zeros((self._stream.height, self._stream.width, 3), np.uint8)
            even[: picture.shape[0], : picture.shape[1]] = picture
            drawn = self._av.VideoFrame.from_ndarray(even, format="bgr24")
            if self.timed:
                self._last = max(self._last + 1, round(1000 * frame.seconds))
                drawn.pts, drawn.time_base = self._last, MILLISECONDS
            for packet in self._stream.encode(drawn):
                self._container.mux(packet)
        except (OSError, self._av.FFmpegError) as error:
            raise InputError(
                f"{self.path}: could not be written ({getattr(error, 'strerror', None) or error}); free some space"
            ) from None

    def close(self) -> None:
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            for packet in self._stream.encode():
                container.mux(packet)
            container.close()
            self._temporary.replace(self.path)
        except (OSError, self._av.FFmpegError) as error:
            raise InputError(
                f"{self.path}: could not be finished ({getattr(error, 'strerror', None) or error}); free some space"
            ) from None
        finally:
            self._temporary.unlink(missing_ok=True)

    def _open(self, height: int, width: int) -> None:
        av, choices = self._av, CODECS[self.path.suffix.lower()]
        codec = next((name for name in choices if _has_encoder(av, name)), None)
        if codec is None:
            raise InputError(f"{self.path}: expected an encoder ({', '.join(choices)}), found none; reinstall av")
        if codec != choices[0]:
            self.told.append(f"{self.path}: encoded by {codec}, as {choices[0]} is not here")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # mp4: the index in front, so that browsers can start before the end
        options = {"movflags": "faststart"} if self.path.suffix.lower() == ".mp4" else {}
        container = av.open(str(self._temporary), "w", options=options)
        rate = Fraction(self.fps).limit_denominator(1001)
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            stream.bit_rate = max(1_000_000, 4 * height * width)
        if self.timed:
            stream.codec_context.time_base = MILLISECONDS
        self._container, self._stream = container, stream


class PictureSink(Sink):
    """Pictures in a folder, named as the frames' files or by number; or one picture file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._names: set[str] = set()

    def write(self, picture: np.ndarray, frame: Frame) -> None:
        import cv2

        target = self.path
        if target.suffix.lower() not in SUFFIXES:
            stem = first = Path(frame.name).stem if frame.name else f"frame_{frame.index:06d}"
            for number in itertools.count(1):
                if stem not in self._names:
                    break
                stem = f"{first}_{number}"  # pictures of one name from two folders
            self._names.add(stem)
            target = target / f"{stem}.jpg"
        encoded = cv2.imencode(target.suffix, picture)[1]
        with atomic_path(target) as temporary:
            temporary.write_bytes(encoded.tobytes())


class WindowSink(Sink):
    """A window; q or Esc closes it."""

    def __init__(self, title: str, wait: bool) -> None:
        super().__init__()
        self.title, self.wait = title, wait
        import cv2

        probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('norton_det'); cv2.waitKey(1)"]
        if subprocess.run(probe, capture_output=True, check=False).returncode:  # Qt ends a process without a display
            raise InputError(
                "window: expected a display that OpenCV can use, got none; give --output, or install opencv-python"
            )
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def write(self, picture: np.ndarray, frame: Frame) -> None:
        import cv2

        cv2.imshow(self.title, picture)
        self._look(1)

    def pause(self) -> None:
        if self.wait:
            self._look(0)

    def _look(self, milliseconds: int) -> None:
        import cv2

        key = cv2.waitKey(milliseconds) & 0xFF
        if key in (27, ord("q")) or cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1:
            self.wanted = False

    def close(self) -> None:
        import cv2

        cv2.destroyAllWindows()


class Sinks(Sink):
    """Several at once."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        super().__init__()
        self.sinks = sinks

    def write(self, picture: np.ndarray, frame: Frame) -> None:
        for sink in self.sinks:
            sink.write(picture, frame)
        self.wanted = all(sink.wanted for sink in self.sinks)

    def pause(self) -> None:
        for sink in self.sinks:
            sink.pause()
        self.wanted = all(sink.wanted for sink in self.sinks)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
        self.told = [line for sink in self.sinks for line in sink.told]


def check_output(output: str | None, window: bool | None = None) -> None:
    """Refuse an output that could not be written, and no output where there is no display, before anything is loaded.

    Raises:
        InputError: one line with the mend.
    """
    if output:
        path = Path(output)
        if path.suffix.lower() in CODECS:
            require_module("av", "demo")
            require_writable(path)
        elif path.suffix.lower() in SUFFIXES:
            require_writable(path)
        elif path.suffix and not path.is_dir():
            kinds = ", ".join([*CODECS, ".jpg", ".png"])
            raise InputError(f"{output}: expected a folder, or a name ending in {kinds}; got {path.suffix!r}")
        else:
            require_writable(path / "frame.jpg")
    if (window or not output) and not has_display():
        raise InputError("window: expected a display, found none; give --output FILE.mp4 or a folder")


def open_sink(output: str | None, source: Source, window: bool = False, most: int | None = None) -> Sink:
    """The output for frames of a source, ``most`` at most: a video or pictures by the name's ending, a window without.

    Raises:
        InputError: one picture file for more than one frame, an output that is an input, or see ``check_output``.
    """
    check_output(output, window)
    if output:
        _spare_inputs(Path(output), source)
    sinks: list[Sink] = []
    if output:
        path = Path(output)
        if path.suffix.lower() in CODECS:
            sinks.append(VideoSink(path, source.fps if source.video else 2.0, source.live))
        else:
            if path.suffix.lower() in SUFFIXES and 1 not in (source.count, most):
                raise InputError(f"{output}: expected a folder or a video for more than one frame; name one")
            sinks.append(PictureSink(path))
    if window or not output:
        sinks.append(WindowSink("norton_det", wait=not source.video))
    return sinks[0] if len(sinks) == 1 else Sinks(sinks)


def _spare_inputs(output: Path, source: Source) -> None:
    """Refuse to write over what is read."""
    target = output.resolve()
    for file in source.files:
        if target == file.resolve() or (
            output.suffix.lower() not in (*CODECS, *SUFFIXES) and target == file.resolve().parent
        ):
            raise InputError(f"{output}: expected another place than that of the input, got the same; name another")


def has_display() -> bool:
    """Whether a window can be shown; on Linux a display has to be named."""
    return platform.system() != "Linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _has_encoder(av: Any, name: str) -> bool:
    try:
        return bool(av.Codec(name, "w"))
    except (av.FFmpegError, ValueError):
        return False


def _fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture shrunk or enlarged into (height, width), its shape kept, in the top left corner."""
    import cv2

    scale = min(height / picture.shape[0], width / picture.shape[1])
    size = max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)

"""Where drawn frames go: a video, pictures, or a window."""

import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.images import WRITTEN
from ..deploy.engines import require_module
from ..utils.errors import InputError
from ..utils.files import atomic_path, require_writable
from .frames import Frame, Sink, Source
from .video import CODECS, VideoSink

LONGEST_JPEG = 65_500  # pixels of a side


class PictureSink(Sink):
    """Pictures in a folder, named as the frames' files or by number; or one picture file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._read: set[str] = set()
        self._written: set[str] = set()

    def write(self, picture: np.ndarray, frame: Frame) -> None:
        import cv2

        target = self.path
        if target.suffix.lower() not in WRITTEN:
            name = Path(frame.name or f"frame_{frame.index:06d}")
            numbered = (f"{name.stem}_{number}" for number in itertools.count(1))  # the same name in two folders
            distinct = [name.stem] if name.name in self._read else [name.stem, name.name]  # a.bmp beside a.webp
            stem = next(stem for stem in itertools.chain(distinct, numbered) if stem not in self._written)
            self._written.add(stem)
            self._read.add(name.name)
            target = target / f"{stem}{'.jpg' if max(picture.shape) <= LONGEST_JPEG else '.png'}"
        try:
            good, encoded = cv2.imencode(target.suffix, picture)
        except cv2.error:
            good = False
        if not good:
            sides = f"{picture.shape[1]}x{picture.shape[0]}"
            raise InputError(f"{target}: expected a picture that {target.suffix} holds, got {sides}; name a .png")
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
            require_module("av")
            require_writable(path)
        elif path.suffix.lower() in WRITTEN:
            require_writable(path)
        elif path.suffix and not path.is_dir():
            kinds = ", ".join([*CODECS, ".jpg", ".png"])
            raise InputError(
                f"{output}: expected a folder, or a name ending in {kinds}; got {path.suffix!r}; make a folder of "
                "such a name first"
            )
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
            sinks.append(VideoSink(path, None if source.live else source.fps))
        else:
            if path.suffix.lower() in WRITTEN and 1 not in (source.count, most):
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
            output.suffix.lower() not in (*CODECS, *WRITTEN) and target == file.resolve().parent
        ):
            raise InputError(f"{output}: expected another place than that of the input, got the same; name another")


def has_display() -> bool:
    """Whether a window can be shown; on Linux a display has to be named."""
    return platform.system() != "Linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

"""Faults of the demo: cameras, videos, codecs and displays that are not there or go, and a process that is ended."""

import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from norton_det.live import Frame, open_source
from norton_det.live import video as video_module
from norton_det.live.video import VideoSink

from .faults import Fault, tool
from .stream import Stream

FRAMES, LONG = 12, 600  # of a short film, and of one that is still being shown when its process is ended
GONE = 3  # exit status when a camera or stream has gone


def film(path: Path, frames: int = FRAMES) -> Path:
    """A video of moving noise."""
    sink = VideoSink(path, 10.0)
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    for number in range(frames):
        picture = np.roll(noise, number, axis=1)
        sink.write(picture, Frame(picture, number, number / 10))
    sink.close()
    return path


def frames_of(path: Path) -> int:
    """How many come back from a video."""
    source = open_source(str(path))
    found = sum(1 for _ in source)
    source.close()
    return found


def demo(detector: Path, *words: object) -> int | None:
    """tools/demo.py with the small detector."""
    tool("tools/demo.py", "--weights", detector, "--threads", 1, "--quiet", *words)


def show(folder: Path, detector: Path, given: object, output: str = "out.mp4") -> int | None:
    return demo(detector, "--video-input", given, "--output", folder / output)


# --- cameras and streams ----------------------------------------------------------------------------------------------


def writing(folder: Path) -> bool:
    """Whether the demo has begun to write."""
    return any(path.name.startswith(".out.") for path in folder.iterdir())


def unplugged(folder: Path, detector: Path) -> int | None:
    """A stream that ends two seconds after its first frame was shown; what was seen is in the output."""
    from norton_det.live.camera import Camera

    def unplug() -> None:
        while not writing(folder):
            time.sleep(0.05)
        time.sleep(2)
        stream.unplugged = True

    Camera.__init__.__defaults__ = ((0.01, 0.02, 0.03), None)  # seconds between attempts
    stream = Stream(1, 60.0)
    threading.Thread(target=unplug, daemon=True).start()
    try:
        return show(folder, detector, stream.url)
    except SystemExit:
        assert frames_of(folder / "out.mp4") > 3, "frames are missing"
        raise


class Changing:
    """A camera whose pictures have another size twice a second; gone two seconds after the first one was shown."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.shown = folder, 0, 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(0.1)
        self.count += 1
        self.shown += writing(self.folder)
        height, width = (96, 128) if self.count // 5 % 2 else (200, 120)
        return (True, np.full((height, width, 3), 99, np.uint8)) if self.shown < 20 else (False, None)

    def get(self, _: int) -> float:
        return 10.0

    def release(self) -> None:
        """Nothing is held."""


def changing(folder: Path, detector: Path) -> int | None:
    """A camera that changes its size: the output keeps that of its first frame, and frames of both are in it."""
    from norton_det.live import source
    from norton_det.live.camera import Camera

    source.Camera = lambda number: Camera(number, (), Changing(folder))
    try:
        return demo(detector, "--webcam", 0, "--output", folder / "out.mkv")
    except SystemExit:
        assert frames_of(folder / "out.mkv") > 3, "frames are missing"
        raise


# --- video files ------------------------------------------------------------------------------------------------------


def truncated(folder: Path, detector: Path) -> int | None:
    content = film(folder / "film.mp4", 60).read_bytes()
    (folder / "film.mp4").write_bytes(content[: len(content) * 2 // 3])
    return show(folder, detector, folder / "film.mp4")


def damaged(folder: Path, detector: Path) -> int | None:
    """Noise over the middle of the pictures in the file: those that can be decoded are shown."""
    content = bytearray(film(folder / "film.mp4", 60).read_bytes())
    start = content.index(b"mdat") + 8
    third = (len(content) - start) // 3
    content[start + third : start + 2 * third] = np.random.default_rng(0).bytes(third)
    (folder / "film.mp4").write_bytes(content)
    return show(folder, detector, folder / "film.mp4")


def with_rate(folder: Path, detector: Path, scale: int, rate: int) -> int | None:
    """An .avi whose header says another rate (frames per second: ``rate`` / ``scale``)."""
    path = film(folder / "film.avi")
    content = bytearray(path.read_bytes())
    start = content.index(b"strh") + 8 + 20  # of dwScale and dwRate
    content[start : start + 8] = struct.pack("<II", scale, rate)
    main = content.index(b"avih") + 8
    content[main : main + 4] = bytes(4)  # microseconds per frame
    path.write_bytes(content)
    return counted(folder, detector, path)


def with_property(folder: Path, detector: Path, value: float) -> int | None:
    """A video of which OpenCV says this rate."""
    from norton_det.live import film as reading

    path, real = film(folder / "film.mp4"), reading.open_file

    class Saying:
        def __init__(self, inner: cv2.VideoCapture) -> None:
            self.read, self.release, self.inner = inner.read, inner.release, inner

        def get(self, which: int) -> float:
            return value if which == cv2.CAP_PROP_FPS else self.inner.get(which)

    reading.open_file = lambda name: Saying(real(name))
    reading.choose_reader = lambda: reading.OpenCVFilm
    return counted(folder, detector, path)


def counted(folder: Path, detector: Path, path: Path) -> int | None:
    """Every frame of a film comes back from the output."""
    try:
        return show(folder, detector, path)
    except SystemExit:
        assert frames_of(folder / "out.mp4") == FRAMES
        raise


# --- outputs ----------------------------------------------------------------------------------------------------------


def no_codec(folder: Path, detector: Path) -> int | None:
    path = film(folder / "film.mp4")
    video_module._has_encoder = lambda _av, _name: False
    return show(folder, detector, path)


def another_codec(folder: Path, detector: Path) -> int | None:
    path = film(folder / "film.mp4")
    video_module._has_encoder = lambda _av, name: name != "libx264"
    return counted(folder, detector, path)


def no_display(folder: Path, detector: Path, named: str, *words: object) -> int | None:
    """``named``: a display where nothing is, or none."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        os.environ.pop(name, None)
    if named:
        os.environ["DISPLAY"] = named
    return demo(detector, "--video-input", film(folder / "film.mp4"), *words)


# --- ended while it writes --------------------------------------------------------------------------------------------


@contextmanager
def running(folder: Path, detector: Path, ending: str) -> Iterator[int]:
    """The process of a demo that has written something, and goes on."""
    path = film(folder / "film.mkv", LONG)
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            show(folder, detector, path, f"out.{ending}")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    part = folder / f".out.{pid}.part.{ending}"
    while not (part.exists() and part.stat().st_size > 20_000):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the demo ended by itself"
        time.sleep(0.05)
    yield pid


def killed(folder: Path, detector: Path, ending: str) -> int | None:
    with running(folder, detector, ending) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(f"{frames_of(folder / f'.out.{pid}.part.{ending}')} frames come back")
    return 0


def terminated(folder: Path, detector: Path, how: int) -> int | None:
    with running(folder, detector, "mp4") as pid:
        os.kill(pid, how)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert [path.name for path in folder.iterdir() if "part" in path.name] == [], "a part is left"
    assert frames_of(folder / "out.mp4") > 0
    return status


def interrupted_twice(folder: Path, detector: Path) -> int | None:
    """The second one ends the run within its frame; the file is finished all the same."""
    with running(folder, detector, "mp4") as pid:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert frames_of(folder / "out.mp4") > 0
    return status


def _webcam(folder: Path, detector: Path, number: int) -> int | None:
    return demo(detector, "--webcam", number, "--output", folder / "out.mp4")


def _empty(folder: Path, detector: Path) -> int | None:
    (folder / "film.mp4").touch()
    return show(folder, detector, folder / "film.mp4")


def _case(name: str, expects: str, status: int, call: Callable[..., int | None], *words: object) -> Fault:
    return Fault("demo", name, lambda folder: call(folder, folder / "detector.xml", *words), expects, status)


SHOWN = rf"^{FRAMES} frames of .*the first after"
FAULTS = [
    _case("a camera that is not there", "camera 77: expected a camera, found none", 2, _webcam, 77),
    _case("camera -1", "camera -1: expected a camera, found none", 2, _webcam, -1),
    _case("a camera unplugged midway", "none after 3 attempts to open it again; check the address", GONE, unplugged),
    _case("a camera that changes its size midway", "camera 0: expected frames, got none", GONE, changing),
    _case("an empty video", "got an empty file; download or write it again", 2, _empty),
    _case("a truncated video", "of 60 declared frames; the rest is damaged", 0, truncated),
    _case("a damaged video", r"frames? of .*the first after", 0, damaged),
    _case("0 frames a second in a video's header", SHOWN, 0, with_rate, 1, 0),
    _case("0/0 frames a second in a video's header", SHOWN, 0, with_rate, 0, 0),
    _case("NaN frames a second", SHOWN, 0, with_property, float("nan")),
    _case("infinitely many frames a second", SHOWN, 0, with_property, float("inf")),
    _case("no codec for the output", "expected an encoder .* found none; reinstall av", 2, no_codec),
    _case("the usual codec is missing", "encoded by mpeg4, as libx264 is not here", 0, another_codec),
    _case("no display", "window: expected a display, found none; give --output", 2, no_display, ""),
    _case("no display, --window", "expected a display, found none", 2, no_display, "", "--window", "--output", "o"),
    _case("a display that is not there", "expected a display that OpenCV can use", 2, no_display, ":4711"),
    _case("SIGKILL while an .mp4 is written", r"^[1-9]\d* frames come back", 0, killed, "mp4"),
    _case("SIGKILL while an .mkv is written", r"^[1-9]\d* frames come back", 0, killed, "mkv"),
    _case("SIGTERM while a video is written", "interrupted", 130, terminated, signal.SIGTERM),
    _case("Ctrl-C while a video is written", "interrupted", 130, terminated, signal.SIGINT),
    _case("Ctrl-C and SIGTERM at once", "interrupted", 130, interrupted_twice),
]

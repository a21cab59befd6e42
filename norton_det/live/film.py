"""Frames of a video file with the times that they have in it: read by PyAV, or by OpenCV where that is not installed.

The clock of a file says little by itself: browsers count milliseconds and call it 1000 frames a second, recordings of
a screen pause for seconds, MPEG-TS begins anywhere. So a frame is shown from its own time, counted from that of the
first one, until that of the next; the last one as long as the file says.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import InputError
from ..utils.extras import mend
from .capture import TIMEOUT_MS, URLS, open_file, property_of
from .frames import Frame, Source

MEND = "check it in a player, or convert it"
USUAL = 25.0  # frames a second, where a file does not say
FASTEST = 240.0  # that is believed; beyond it a rate is a clock
SPARE = 0.5  # seconds without a frame at the end of a file that are not told
Shot = tuple[np.ndarray, float | None, float]  # picture (H, W, 3), BGR; its time in the file and how long, in seconds


class PyAVFilm:
    """A file, or one over HTTP, in PyAV.

    Attributes:
        fps: frames a second, where they come evenly.
        declared: how many frames the file says it has; ``None`` where its kind does not count them.
        count: the same, or what follows from its length.
        end: when the last frame ends, in the file's own time; ``None`` where it does not say.
        damaged: how many parts could not be decoded.

    Raises:
        InputError: it does not open, holds no video, or none that this PyAV decodes.
    """

    def __init__(self, name: str) -> None:
        import av

        self._av, self.damaged = av, 0
        try:
            self._container = av.open(address(name), timeout=TIMEOUT_MS / 1000)
        except (OSError, ValueError, av.FFmpegError) as error:  # ValueError: of a NUL in the name
            refused = f" ({error.strerror})" if isinstance(error, OSError) else ""
            raise InputError(
                f"{name}: expected a video, got a file that does not open as one{refused}; {MEND}"
            ) from None
        try:
            self._stream = self._choose(name)
        except InputError:
            self.close()
            raise
        self._stream.thread_type = "AUTO"
        average, steady = (float(rate or 0) for rate in (self._stream.average_rate, self._stream.base_rate))
        even = 0 < average <= FASTEST and abs(average - steady) < 0.01 * average
        self.fps = average if even else None
        self.declared = self._stream.frames or None if self._container.format.name != "avi" else None  # it counts steps
        self.end = self._find_end()
        self.count = self._stream.frames or (round(self.end * average) if self.end and even else None)

    def shots(self) -> Iterator[Shot]:
        """Frames in the order in which they are shown, upright; up to where the file can be read."""
        for frame in self._frames():
            seconds = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            yield _upright(frame), frame.time, seconds

    def close(self) -> None:
        self._container.close()

    def _choose(self, name: str) -> Any:
        """The stream of pictures, apart from the cover of a piece of music."""
        cover = self._av.stream.Disposition.attached_pic
        films = [stream for stream in self._container.streams.video if not stream.disposition & cover]
        if not films:
            got = "sound alone" if self._container.streams.audio else "a file without one"
            raise InputError(f"{name}: expected a video, got {got}; give one with pictures")
        best = self._container.streams.best("video")
        stream = best if best in films else films[0]
        if stream.codec_context is None:
            raise InputError(
                f"{name}: expected a video, got a codec that the installed PyAV does not decode; convert it"
            )
        return stream

    def _find_end(self) -> float | None:
        stream, whole = self._stream, self._container
        if stream.duration:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        if not whole.duration or whole.duration < 0:
            return None
        from_zero = "matroska" in whole.format.name  # its length counts from zero, those of others from their start
        return (whole.duration + (0 if from_zero else whole.start_time or 0)) / self._av.time_base

    def _frames(self) -> Iterator[Any]:
        doubtful = None  # a packet that may be half there; where recordings were joined it is whole
        try:
            for packet in self._container.demux(self._stream):
                if doubtful is not None and packet.size:
                    yield from self._decoded(doubtful)
                self.damaged += doubtful is not None and not packet.size  # it was cut off
                doubtful = packet if packet.is_corrupt else None
                if doubtful is None:
                    yield from self._decoded(packet)  # the last one is empty, and brings what the decoder still has
        except self._av.FFmpegError:
            self.damaged += 1
            yield from self._decoded(None)

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            return self._stream.decode(packet)
        except self._av.FFmpegError:
            self.damaged += 1
            return []


class OpenCVFilm:
    """The same in OpenCV: fewer kinds of video, and no time of the end."""

    end, damaged = None, 0

    def __init__(self, name: str) -> None:
        self._capture = open_file(address(name))
        rate, count = property_of(self._capture, "FPS"), property_of(self._capture, "FRAME_COUNT")
        self.fps = rate if rate and rate <= FASTEST else None
        self.count = int(count) if count and self.fps else None
        self.declared = self.count if name.lower().endswith((".mp4", ".m4v", ".mov")) else None

    def shots(self) -> Iterator[Shot]:
        while True:
            good, image = self._capture.read()
            if not good:
                return
            time = property_of(self._capture, "POS_MSEC")
            yield image, time and time / 1000, 0.0

    def close(self) -> None:
        self._capture.release()


class VideoFile(Source):
    """Every frame of a video file at its own time; what is missing is named in ``skipped``."""

    def __init__(self, name: str) -> None:
        reader = choose_reader()
        self._film = reader(name)
        super().__init__(name, self._film.fps, self._film.count)
        self.files = [Path(name)]
        self._shots = self._film.shots()
        first = next(self._shots, None)
        if first is None:
            self.close()
            declared = f"0 of {self.count} frames" if self.count else "no frame"
            remedy = MEND if reader is PyAVFilm else f"{mend('av')}, which reads more kinds"
            raise InputError(f"{name}: expected a video, got {declared} that can be read; {remedy}")
        self._first = first

    def __iter__(self) -> Iterator[Frame]:
        usual = 1 / (self.fps or USUAL)
        image, start, length = self._first
        now, zero, index = 0.0, start or 0.0, 0  # zero: what the file's clock shows at the start of the film
        for following, time, its_length in self._shots:
            after = now + (length or usual) if time is None else time - zero
            if after < now:  # a clock that was set back, as where recordings were joined
                after = now + (length or usual)
                zero = (time or 0.0) - after
            yield Frame(image, index, now, duration=after - now)
            image, length, now, index = following, its_length, after, index + 1
        missing = max(0.0, (self._film.end or 0.0) - zero - now - (length or usual))
        broken = self._film.damaged or (self._film.declared or 0) > index + 1
        self._tell(index + 1, missing)
        yield Frame(image, index, now, duration=(length or usual) + (0.0 if broken else missing))

    def _tell(self, read: int, missing: float) -> None:
        """Name what was not read, of frames and of the seconds at the end."""
        declared, damaged = self._film.declared, self._film.damaged
        if (
            declared and read < declared and (missing > 0 or self._film.end is None)
        ):  # else it was cut by its list of edits
            self.skipped.append(f"{self.name}: read {read} of {declared} declared frames; the rest is damaged")
        elif damaged:
            self.skipped.append(f"{self.name}: read {read} frames; {damaged} parts are damaged")
        elif missing > SPARE:
            still = "it was cut off, or shows one picture until then"
            self.skipped.append(f"{self.name}: holds no frame for its last {missing:.1f} s; {still}")

    def close(self) -> None:
        self._film.close()


def choose_reader() -> type[PyAVFilm] | type[OpenCVFilm]:
    """PyAV where it is installed."""
    return PyAVFilm if importlib.util.find_spec("av") is not None else OpenCVFilm


def address(name: str) -> str:
    """What FFmpeg takes for a file, whatever is in its name: ``12:30.mp4`` alone would be one of a protocol ``12``."""
    return name if name.lower().startswith(URLS) else os.path.abspath(name)


def _upright(frame: Any) -> np.ndarray:
    """A frame's picture (H, W, 3), BGR, turned and mirrored as the matrix of its track says."""
    image = frame.to_ndarray(format="bgr24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

"""Drawn frames as a video, encoded by PyAV; what was written stays playable, whatever ends the process."""

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..deploy.engines import require_module
from ..utils.errors import InputError, first_line, why_not_written
from .frames import Frame, Sink

CODECS = {
    ".mp4": ("libx264", "mpeg4"),
    ".mkv": ("libx264", "mpeg4"),
    ".avi": ("mpeg4", "mjpeg"),
}  # by ending; the first that this machine has
PARTS = {
    ".mp4": {"movflags": "frag_keyframe+delay_moov+default_base_moof", "frag_duration": "1000000"},  # microseconds
    ".mkv": {"cluster_time_limit": "1000"},
    ".avi": {},
}  # by ending: how FFmpeg writes what can be played without its end
TICKS = 60_000  # of the clock a second: whole numbers of them for all usual rates, and not too many for MPEG-4
STEPS = 100  # the same of an .avi, which shows a picture at each tick, where frames do not come evenly
NAME = 40  # letters of a file's name that its temporary file has too
EARLY = "ends early, as the rest could not be written"


class VideoSink(Sink):
    """A video with the times that the frames had; written beside its place and moved there when it is closed.

    It is written in parts of about a second that can be played without an end, whatever ends the process.

    Args:
        path: .mp4, .mkv or .avi.
        fps: frames a second, where they come evenly.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        super().__init__()
        self.path, self.fps = path, fps
        self._container: Any = None
        self._stream: Any = None
        self._held: Any = None  # the last packet: it is shown as long as the last frame is
        self._last, self._end = -1, 0  # ticks: the newest frame's, and that where it ends
        self._clock = Fraction(1, TICKS)
        if path.suffix.lower() == ".avi":
            self._clock = 1 / Fraction(fps or STEPS).limit_denominator(1001)
        stem = path.absolute().with_name(f".{path.stem[:NAME]}.{os.getpid()}.part")
        self._parts, self._whole = (stem.with_name(stem.name + more + path.suffix) for more in ("", ".whole"))
        self._av = require_module("av")

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
            self._last = max(self._last + 1, round(frame.seconds / self._clock))
            self._end = round((frame.seconds + frame.duration) / self._clock)
            drawn.pts, drawn.time_base = self._last, self._clock
            self._mux(self._stream.encode(drawn))
        except (OSError, self._av.FFmpegError) as error:
            what = "could not be written" if self._container is None else EARLY
            raise InputError(f"{self.path}: {what} {_why(error)}") from None

    def close(self) -> None:
        """Finish the video. What could not be finished, or not be moved to its place, is kept and named.

        Raises:
            InputError: the video ends early, or lies under another name.
        """
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            self._mux(self._stream.encode(), container)
            self._finish(container)
            ended_early = None
        except (OSError, self._av.FFmpegError) as error:
            ended_early = error
            with contextlib.suppress(OSError, self._av.FFmpegError):
                container.close()
        written = self._joined() if self.path.suffix.lower() == ".mp4" and not ended_early else self._parts
        try:
            written.replace(self.path)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.path}: could not be moved there ({reason}); take it from {written}") from None
        self._parts.unlink(missing_ok=True)
        if ended_early:
            raise InputError(f"{self.path}: {EARLY} {_why(ended_early)}")

    def _mux(self, packets: list[Any], container: Any = None) -> None:
        """Write packets but for the last one, and the one that was held before."""
        for packet in packets:
            if self._held is not None:
                held, self._held = self._held, packet
                (container or self._container).mux(held)
            else:
                self._held = packet

    def _finish(self, container: Any) -> None:
        held, self._held = self._held, None
        if held is not None:
            if self._end > self._last:
                held.duration = int((self._end - self._last) * self._clock / held.time_base)
            container.mux(held)
        container.close()

    def _joined(self) -> Path:
        """The video as one part where that can be made; in its parts, which can be played too, where not."""
        try:
            _join_parts(self._av, self._parts, self._whole)
        except (OSError, self._av.FFmpegError) as error:
            self._whole.unlink(missing_ok=True)
            self.told.append(f"{self.path}: left in parts, which few players mind ({first_line(error)})")
            return self._parts
        return self._whole

    def _open(self, height: int, width: int) -> None:
        av, choices = self._av, CODECS[self.path.suffix.lower()]
        codec = next((name for name in choices if _has_encoder(av, name)), None)
        if codec is None:
            raise InputError(f"{self.path}: expected an encoder ({', '.join(choices)}), found none; reinstall av")
        if codec != choices[0]:
            self.told.append(f"{self.path}: encoded by {codec}, as {choices[0]} is not here")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(str(self._parts), "w", options=PARTS[self.path.suffix.lower()] | {"flush_packets": "1"})
        rate = (
            1 / self._clock if self.path.suffix.lower() == ".avi" else Fraction(self.fps or 25).limit_denominator(1001)
        )
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "20", "preset": "veryfast", "bf": "0"}  # the last packet is the last frame
        else:
            stream.bit_rate = max(1_000_000, 4 * height * width)
        stream.codec_context.time_base = self._clock
        self._container, self._stream = container, stream


def _why(error: Exception) -> str:
    """The reason in brackets and the mend; an encoder that refuses is helped by no other place."""
    if isinstance(error, OSError):
        return why_not_written(error)
    return f"({first_line(error)}); give a folder, for pictures"


def _has_encoder(av: Any, name: str) -> bool:
    try:
        return bool(av.Codec(name, "w"))
    except (av.FFmpegError, ValueError):
        return False


def _join_parts(av: Any, parts: Path, whole: Path) -> None:
    """An .mp4 of one part with the index in front, so that browsers can start before the end."""
    with av.open(str(parts)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as made:
        (read,) = source.streams.video
        written = made.add_stream_from_template(read)
        for packet in source.demux(read):
            if packet.dts is not None:  # the last one is empty
                packet.stream = written
                made.mux(packet)


def _fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture shrunk or enlarged into (height, width), its shape kept, in the top left corner."""
    import cv2

    scale = min(height / picture.shape[0], width / picture.shape[1])
    size = max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)

"""Drawn frames as a video, encoded by PyAV; what was written stays playable, whatever ends the process."""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..deploy.engines import require_module
from ..utils.errors import InputError
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
MILLISECONDS = Fraction(1, 1000)


class VideoSink(Sink):
    """A video with the times that the frames had; written beside its place and moved there when it is closed.

    It is written in parts of about a second that can be played without an end, whatever ends the process.
    """

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
        self._whole = self._temporary.with_suffix(f".whole{path.suffix}")
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
            if self.path.suffix.lower() == ".mp4":
                _join_parts(self._av, self._temporary, self._whole)
                self._whole.replace(self.path)
            else:
                self._temporary.replace(self.path)
        except (OSError, self._av.FFmpegError) as error:
            raise InputError(
                f"{self.path}: could not be finished ({getattr(error, 'strerror', None) or error}); free some space"
            ) from None
        finally:
            self._temporary.unlink(missing_ok=True)
            self._whole.unlink(missing_ok=True)

    def _open(self, height: int, width: int) -> None:
        av, choices = self._av, CODECS[self.path.suffix.lower()]
        codec = next((name for name in choices if _has_encoder(av, name)), None)
        if codec is None:
            raise InputError(f"{self.path}: expected an encoder ({', '.join(choices)}), found none; reinstall av")
        if codec != choices[0]:
            self.told.append(f"{self.path}: encoded by {codec}, as {choices[0]} is not here")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(str(self._temporary), "w", options=PARTS[self.path.suffix.lower()] | {"flush_packets": "1"})
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

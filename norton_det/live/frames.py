"""What a source of frames is, and what takes them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..utils.errors import InputError


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
        duration: seconds that it is shown; 0 where that is not known yet, as of live ones.
    """

    image: np.ndarray
    index: int
    seconds: float
    name: str = ""
    duration: float = 0.0


class Source(ABC):
    """An iterable of frames.

    Attributes:
        name: for the user.
        fps: frames a second, where they come evenly; ``None`` for pictures, and where the source does not say.
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

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Frames in order; once."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the device or file."""


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

"""Frames per second of the last frames."""

import statistics
from collections import deque


class Meter:
    """Seconds of frames, and their rate.

    Args:
        window: how many of the last frames the live rate is of.

    The first frame, in which memory is got and kernels are chosen, is left out of both rates.
    """

    def __init__(self, window: int = 30) -> None:
        self.all: list[float] = []
        self._last: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        """Take one frame's time."""
        if self.all:
            self._last.append(seconds)
        self.all.append(seconds)

    @property
    def fps(self) -> float:
        """Of the last frames: their number over their time; 0 before the second one."""
        return len(self._last) / sum(self._last) if self._last and sum(self._last) > 0 else 0.0

    @property
    def median_ms(self) -> float:
        """Milliseconds of the median frame; of the only one where there is one, 0 without any."""
        return 1000 * statistics.median(self.all[1:] or self.all or [0.0])

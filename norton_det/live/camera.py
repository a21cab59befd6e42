"""Cameras and streams: the newest frame, read by a thread of its own, so that a slow detector shows what is there now.

A lost one is opened again a few times.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..utils.errors import InputError, first_line
from .capture import open_live, property_of
from .frames import Frame, Source, SourceLost

BACK_OFF = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a lost camera is opened again


class Camera(Source):
    """A camera or a stream: the newest frame, read by a thread of its own.

    Raises:
        SourceLost: while iterating, when it has gone and does not come back.
    """

    live = True

    def __init__(self, target: int | str, back_off: Sequence[float] = BACK_OFF, capture: Any = None) -> None:
        self.target, self.back_off = target, back_off
        self.capture = capture or open_live(target)
        super().__init__(
            f"camera {target}" if isinstance(target, int) else str(target), property_of(self.capture, "FPS")
        )
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
                self.capture = open_live(self.target)
                self.reopened += 1
        return f"{self.name}: closed"

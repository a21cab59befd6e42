"""The demo's loop: frames through one detector or two, drawn, written and timed."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.images import beside
from ..models.input_size import ThinPicture
from ..utils.errors import InputError
from .frames import Frame, Sink, Source, SourceLost
from .meter import Meter
from .overlay import Overlay


@dataclass
class Side:
    """One detector of the demo, with its times."""

    name: str
    predictor: Any
    overlay: Overlay
    model: Meter = field(default_factory=Meter)
    whole: Meter = field(default_factory=Meter)

    def lines(self) -> list[str]:
        """What stands above its picture."""
        info = self.predictor.info
        precision = "" if self.predictor.name.endswith("eager") else f" {info.precision}"
        text = [f"{self.name}, {self.predictor.name}{precision}"]
        if info.macs:
            text[0] += f", {info.macs / 1e9:.1f} G MACs, {info.params / 1e6:.1f} M"
        if len(self.model.all) == 1:
            return [*text, f"first frame, {1000 * self.model.all[0]:.0f} ms model"]
        whole = f", {self.whole.fps:.1f} FPS end to end" if self.whole.fps else ""
        return [*text, f"{self.model.fps:.1f} FPS model{whole}"]

    def summary(self) -> dict[str, Any]:
        """Its times, for --json and the end."""
        info = self.predictor.info
        return {
            "name": self.name,
            "engine": self.predictor.name,
            "precision": info.precision,
            "model_ms": self.model.median_ms,
            "model_fps": rate(self.model.median_ms),
            "end_to_end_ms": self.whole.median_ms,
            "end_to_end_fps": rate(self.whole.median_ms),
            "macs": info.macs or None,  # not known of files of older versions
            "params": info.params or None,
        }


@dataclass
class Shown:
    """What came of a run.

    Attributes:
        frames: how many.
        first: when the first one was done, as ``time.perf_counter`` has it.
        lost: why it ended early; empty where it did not.
    """

    frames: int = 0
    first: float | None = None
    lost: str = ""


def rate(milliseconds: float) -> float:
    return 1000 / milliseconds if milliseconds else 0.0


def show(
    sides: Sequence[Side],
    source: Source,
    sink: Sink | None,
    *,
    threshold: float,
    most: int | None = None,
    quiet: bool = False,
) -> Shown:
    """Run the frames through the detectors.

    Args:
        sides: the detectors, from left to right.
        source, sink: where frames come from and go to; without a sink nothing is drawn. Pictures that are too thin for
            a detector are named in ``source.skipped``.
        threshold: least score that is shown.
        most: frames at most.
        quiet: no progress bar.
    """
    total = min(filter(None, (source.count, most)), default=None)
    result = Shown()
    bar = tqdm(total=total, unit="frame", desc="demo", disable=quiet)
    began = time.perf_counter()
    try:
        for frame in source:
            waited = time.perf_counter() - began
            try:
                drawn = [see(side, frame, threshold, sink is not None) for side in sides]
            except ThinPicture as error:
                if source.video:
                    raise InputError(f"{source.name}: {error}") from None
                source.skipped.append(f"{frame.name}: {error}")
                continue
            started = time.perf_counter()
            if sink is not None:
                sink.write(drawn[0][0] if len(drawn) == 1 else beside([picture for picture, _ in drawn]), frame)
            written = time.perf_counter() - started
            for side, (_, seconds) in zip(sides, drawn, strict=True):
                side.whole.add(waited + seconds + written)
            result.frames += 1
            if result.first is None:
                result.first = time.perf_counter()
            bar.update()
            if sink is not None:
                sink.pause()
            if source.stopped or result.frames == most or (sink is not None and not sink.wanted):
                break
            began = time.perf_counter()
    except SourceLost as lost:
        result.lost = str(lost)
    finally:
        bar.close()
    return result


def see(side: Side, frame: Frame, threshold: float, draw: bool) -> tuple[np.ndarray, float]:
    """A frame with what one detector found; seconds of both together."""
    started = time.perf_counter()
    detections = side.predictor(frame.image, threshold)
    side.model.add(time.perf_counter() - started)
    if draw:
        picture = side.overlay.draw(frame.image, detections, side.lines())
    else:
        picture = frame.image
    return picture, time.perf_counter() - started


class Interrupt:
    """Ctrl-C or SIGTERM ends the run after its frame; a second one at once, but not while files are closed."""

    def __init__(self, source: Source) -> None:
        self.source, self.asked, self.closing = source, False, False

    def __enter__(self) -> "Interrupt":
        self.before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, *_: object) -> None:
        if self.asked and not self.closing:
            raise KeyboardInterrupt
        self.asked = self.source.stopped = True

"""What a search looks at, how it times, and when it is content: one object instead of constants of many modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ...utils.timing import Timing, measure


class Measure(Protocol):
    """Times candidates in turns, as ``utils.timing.measure`` does."""

    def __call__(
        self, candidates: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int, progress: bool
    ) -> dict[str, Timing]: ...


@dataclass(frozen=True)
class SearchSettings:
    """How a search measures errors and costs, and when it stops.

    Attributes:
        ranks: CP ranks to choose from, falling; dense comes beside them.
        filters: how many of a convolution stand for all of them.
        rows: positions of each layer's output that are looked at.
        images, probe_images: of a classifier: for the layers' own errors, and for the effect on its outputs.
        crops, crop_side: of a detector's images, for the layers' own errors; the side in pixels, a multiple of 32.
        probe_crops, probe_side: the same for the effect on its outputs.
        tolerance: share of the target that a result may be off by.
        close: a latency that is as near to the target is not corrected again.
        attempts: choices that are timed at most.
        measure: what times networks and layers.
    """

    ranks: tuple[int, ...] = (5, 3, 2, 1)
    filters: int = 16
    rows: int = 8192
    images: int = 128
    probe_images: int = 16
    crops: int = 24
    crop_side: int = 384
    probe_crops: int = 3
    probe_side: int = 256
    tolerance: float = 0.05
    close: float = 0.04
    attempts: int = 8
    measure: Measure = measure

"""Milliseconds of fused networks, measured in turns with the dense one, so that both meet the same noise."""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from torch import nn

from ...models.fuse import fuse
from ...utils.timing import Timing, measure
from .allocate import Allocation, allocate
from .costs import CostModel
from .problem import SearchProblem, whole_input
from .result import Step
from .sensitivity import Group
from .settings import Measure, SearchSettings

FEWEST, MOST, PATIENCE = 5, 25, 20.0  # rounds of timing, and the seconds that they may take in all


def measure_whole(
    dense: nn.Module, small: nn.Module, input_size: tuple[int, int, int], rounds: int = 7, progress: bool = False
) -> dict[str, float]:
    """Milliseconds of whole calls of two fused networks for one image of noise, in turns.

    Returns:
        ``dense``: a median; ``small``: the median of the ratios of all turns, times that.
    """
    image = whole_input(dense, input_size)
    models = {"dense": fuse(dense.eval()), "small": fuse(small.eval())}
    calls = {name: partial(model, image) for name, model in models.items()}
    timings = measure(calls, rounds=rounds, warmup=1, progress=progress)
    dense_ms = 1e3 * timings["dense"].median
    return {"dense": dense_ms, "small": dense_ms * _ratio(timings["small"], timings["dense"])}


def _ratio(one: Timing, other: Timing) -> float:
    """The median of the ratios of all turns."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))


class LatencyMeter:
    """Measures a search's networks in turns with the dense one, whose time is ``dense`` ms.

    Args:
        problem: makes the calls.
        measure: what times them.
        rounds: of timing; by default what ``PATIENCE`` allows.
        progress: show bars.
    """

    def __init__(
        self, problem: SearchProblem, measure: Measure = measure, rounds: int | None = None, progress: bool = False
    ) -> None:
        self.problem, self.measure, self.progress = problem, measure, progress
        self.rounds = rounds or FEWEST
        self.baseline = problem.frame(None, {})
        self.dense = self._dense()
        if rounds is None:
            self.rounds = min(MOST, max(FEWEST, int(PATIENCE / (2e-3 * self.dense))))
            self.dense = self._dense()

    def _dense(self) -> float:
        timings = self.measure({"dense": self.baseline}, rounds=self.rounds, warmup=1, progress=self.progress)
        return 1e3 * timings["dense"].median

    def milliseconds(self, allocation: Allocation) -> float:
        """As long as the dense network takes ``dense`` ms: the median of the ratios of all turns, times that."""
        spec, layout = self.problem.network.to_spec(allocation.assignment)
        calls = {"dense": self.baseline, "choice": self.problem.frame(spec, layout)}
        timings = self.measure(calls, rounds=self.rounds, warmup=1, progress=self.progress)
        return self.dense * _ratio(timings["choice"], timings["dense"])


class Meter(Protocol):
    """Measures what the network of an allocation takes."""

    def milliseconds(self, allocation: Allocation) -> float: ...


def allocate_measured(
    groups: Sequence[Group], costs: CostModel, target: float, meter: Meter, settings: SearchSettings
) -> tuple[Allocation, float, list[Step]]:
    """Allocate, measure, correct the prediction; the allocation that came nearest to the target, and its time."""
    aim, history, factors = target, [], []
    best: tuple[float, Allocation, float] | None = None
    for _ in range(settings.attempts):
        allocation = allocate(groups, costs, aim)
        reached = meter.milliseconds(allocation)
        history.append(Step(allocation.cost, reached, allocation.error))
        distance = abs(reached / target - 1)
        if best is None or distance < best[0]:
            best = (distance, allocation, reached)
        if distance <= settings.close or (not allocation.met and reached > target * (1 + settings.tolerance)):
            break
        # what is saved is off by a factor; measurements are noisy, so all that were made have a say
        factors.append(max(0.1, (costs.dense - reached) / max(1e-9, costs.dense - allocation.cost)))
        aim = costs.dense - (costs.dense - target) / statistics.median(factors)
    assert best is not None
    return best[1], best[2], history

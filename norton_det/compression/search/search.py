"""Ranks and ratios for a target: so many MACs, parameters, or milliseconds.

    found = nd.search(detector, target_macs="40%", calibration=pictures)
    result = nd.compress_detector(detector, found.spec, layout=found.layout, calibration=pictures)

1. Every width and rank that could be chosen gets an error, on one scale for all layers (``sensitivity``).
2. ``allocate`` takes those that save most for their error until the target is met.
3. A target of milliseconds is measured: of a quick version of that choice, fused, in turns with the dense network.
   Where the prediction (``latency``) was off, the choice is made again for a corrected target.

What is minimised is the sum of the groups' errors, each measured alone. The network itself is not compressed here.
"""

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import nn

from ...models.fuse import fuse
from ...models.spec import CompressionSpec
from ...utils.errors import InputError
from ...utils.timing import Timing, environment, measure
from .allocate import Allocation, allocate
from .costs import Budget
from .latency import LatencyBudget
from .problem import Subject, subject_of, whole_input
from .sensitivity import Group

TOLERANCE = 0.05  # of the target
CLOSE = 0.04  # a latency that is as near is not corrected again
ATTEMPTS = 8  # choices that are measured at most
FEWEST, MOST, PATIENCE = 5, 25, 20.0  # rounds of timing, and the seconds that they may take in all
UNITS = {"macs": ("G MACs", 1e9), "params": ("M params", 1e6), "latency_ms": ("ms", 1.0)}
TARGETS = tuple(f"target_{kind}" for kind in UNITS)
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_TARGET = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*(%|ms|[kmgt]?)", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One choice that was costed: ``predicted`` and, for a latency, ``measured`` in the target's unit."""

    predicted: float
    measured: float
    error: float


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        spec: for ``compress`` or ``compress_detector``.
        layout: ranks of a detector's layers outside the ResNet by name, ``None`` for those that stay dense: for
            ``compress_detector``. Empty for a classifier.
        kind: macs, params or latency_ms.
        target, reached, dense: in MACs, parameters, or milliseconds.
        error: predicted, the sum that was minimised.
        history: the choices that were costed.
        chosen: of each group its name, dense value, value chosen, and the error of that.
        sensitivity: errors of all choices; another search on the same network can begin with them.
        input_size: (3, H, W).
        seconds: in all.
        where: of a latency, the machine.
    """

    spec: CompressionSpec
    layout: dict[str, int | None]
    kind: str
    target: float
    reached: float
    dense: float
    error: float
    history: tuple[Step, ...]
    chosen: tuple[tuple[str, int | None, int | None, float], ...]
    sensitivity: tuple[Group, ...]
    input_size: tuple[int, int, int]
    seconds: float
    where: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"spec": self.spec.to_dict()}

    def table(self) -> str:
        """One line per group, then the summary."""
        width = max(len(name) for name, *_ in self.chosen)
        lines = [f"{'group':{width}} {'dense':>6} {'chosen':>6} {'error':>8}"]
        for name, dense, value, error in self.chosen:
            shown = ["dense" if part is None else str(part) for part in (dense, value)]
            lines.append(f"{name:{width}} {shown[0]:>6} {shown[1]:>6} {error:8.5f}")
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """One line: target, what was reached, seconds."""
        size = "x".join(map(str, self.input_size))
        where = f", {self.where}" if self.where else ""
        return (
            f"target {show(self.kind, self.target)}: reached {show(self.kind, self.reached)} "
            f"({100 * (self.reached / self.target - 1):+.1f} %; dense {show(self.kind, self.dense)}; {size}{where}); "
            f"search {self.seconds:.1f} s"
        )


def search(
    model: Any,
    *,
    target_macs: float | str | None = None,
    target_params: float | str | None = None,
    target_latency_ms: float | str | None = None,
    calibration: Any = None,
    input_size: tuple[int, int, int] | None = None,
    sensitivity: Sequence[Group] | None = None,
    rounds: int | None = None,
    progress: bool = False,
) -> SearchResult:
    """Ranks and ratios that meet one target at the least error; the model is untouched.

    Args:
        model: a dense ResNet as ``compress`` takes it, or a dense detector as ``compress_detector`` does.
        target_macs, target_params, target_latency_ms: one of them: a number, or text such as ``25G``, ``12.5M``,
            ``300ms``, ``40%`` (of the dense network's). Latency is that of the fused network for one image on this
            machine: a median, measured in turns with the dense network. A detector's is that of the backbone, the
            proposals, and the heads on the dense detector's regions, on noise; it lacks the last NMS.
        calibration: unlabelled images as ``compress`` or ``compress_detector`` take them; without, the weights alone
            tell which layers are sensitive.
        input_size: (3, H, W) that MACs and milliseconds are of; by default 224 x 224, of a detector 800 x 800.
        sensitivity: of an earlier result on the same network, so that it is not measured again.
        rounds: of timing; by default what half a minute allows, 5 to 25.
        progress: show bars.

    Raises:
        InputError: not one target, not a dense network, or a target that cannot be met within 5 %; that message names
            the best that was reached.
    """
    started = time.perf_counter()
    given = {"macs": target_macs, "params": target_params, "latency_ms": target_latency_ms}
    asked = {kind: value for kind, value in given.items() if value is not None}
    if len(asked) != 1:
        raise InputError(
            f"search: expected one of target_macs, target_params, target_latency_ms, got {len(asked)}; give one"
        )
    kind, text = next(iter(asked.items()))
    parse_target(text, kind)  # refused before long work
    if rounds is not None and rounds < 1:
        raise InputError(f"rounds: expected 1 or more, got {rounds}; leave it out")
    subject = subject_of(model, calibration, input_size)
    clock = _Clock(subject, rounds, progress) if kind == "latency_ms" else None
    dense = clock.dense if clock else float(getattr(subject.network.complexity, kind))
    target = parse_target(text, kind, dense)
    if target >= dense:
        raise InputError(
            f"target_{kind}: expected less than the dense network's {show(kind, dense)}, got {show(kind, target)}; "
            "lower it"
        )
    groups = subject.sensitivity(progress) if sensitivity is None else list(sensitivity)
    if clock:
        budget: Budget = LatencyBudget(subject.network, dense, min(clock.rounds, 7), progress)
        found, reached, history = _measured(groups, budget, target, clock)
    else:
        budget = Budget(subject.network, kind)
        found = allocate(groups, budget, target)
        reached, history = found.cost, [Step(found.cost, found.cost, found.error)]
    if abs(reached / target - 1) > TOLERANCE:
        raise InputError(
            f"target_{kind}: expected what ranks and ratios can reach, got {show(kind, target)}; the best that was "
            f"reached is {show(kind, reached)} of {show(kind, dense)}; choose a target near it"
        )
    spec, layout = subject.network.to_spec(found.choice)
    whole: dict[str, int | None] = {each.name: layout.get(each.name) for each in subject.network.around}
    start = subject.network.dense()
    errors = {group.name: group.error_of(found.choice[group.name]) for group in groups}
    return SearchResult(
        spec,
        whole,
        kind,
        target,
        reached,
        dense,
        found.error,
        tuple(history),
        tuple((name, start[name], value, errors.get(name, 0.0)) for name, value in found.choice.items()),
        tuple(groups),
        subject.network.complexity.input_size,
        time.perf_counter() - started,
        environment() if clock else "",
    )


def parse_target(value: float | str, kind: str, dense: float | None = None) -> float:
    """A target as a number; a share needs what the dense network has.

    Raises:
        InputError: not such a number, or not above 0.
    """
    forms = {"macs": "25G, 25e9", "params": "12.5M, 12.5e6", "latency_ms": "300, 300ms"}[kind]
    found = _TARGET.fullmatch(str(value).strip())
    unit = found[2].lower() if found else ""
    number = float(found[1]) if found else -1.0
    wrong = (unit == "ms") is not (kind == "latency_ms") and unit not in ("", "%")
    if isinstance(value, bool) or not found or wrong or not 0 < number < float("inf"):
        raise InputError(f"target_{kind}: expected a number such as {forms} or 40%, got {value!r}; write it so")
    if unit == "%":
        return number / 100 * (dense if dense is not None else 1.0)
    return number * _FACTORS.get(unit, 1.0)


def show(kind: str, value: float) -> str:
    """A cost in words, such as 25.02 G MACs."""
    unit, scale = UNITS[kind]
    return f"{value / scale:.{1 if kind == 'latency_ms' else 2}f} {unit}"


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
    found = measure(calls, rounds=rounds, warmup=1, progress=progress)
    dense_ms = 1e3 * found["dense"].median
    return {"dense": dense_ms, "small": dense_ms * _ratio(found["small"], found["dense"])}


def _ratio(one: Timing, other: Timing) -> float:
    """The median of the ratios of all turns."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))


class _Clock:
    """Milliseconds of fused networks, measured in turns with the dense one, so that both meet the same noise."""

    def __init__(self, subject: Subject, rounds: int | None, progress: bool) -> None:
        self.subject, self.rounds, self.progress = subject, rounds or FEWEST, progress
        self.baseline: Callable[[], object] = subject.frame(None, {})
        self.dense = self._dense()
        if rounds is None:
            self.rounds = min(MOST, max(FEWEST, int(PATIENCE / (2e-3 * self.dense))))
            self.dense = self._dense()

    def _dense(self) -> float:
        found = measure({"dense": self.baseline}, rounds=self.rounds, warmup=1, progress=self.progress)
        return 1e3 * found["dense"].median

    def of(self, choice: Allocation) -> float:
        """As long as the dense network takes ``dense`` ms: the median of the ratios of all turns, times that."""
        spec, layout = self.subject.network.to_spec(choice.choice)
        calls = {"dense": self.baseline, "choice": self.subject.frame(spec, layout)}
        found = measure(calls, rounds=self.rounds, warmup=1, progress=self.progress)
        return self.dense * _ratio(found["choice"], found["dense"])


def _measured(
    groups: list[Group], budget: Budget, target: float, clock: _Clock
) -> tuple[Allocation, float, list[Step]]:
    """Choose, measure, correct; the choice that came nearest to the target."""
    aim, history, factors = target, [], []
    best: tuple[float, Allocation, float] | None = None
    for _ in range(ATTEMPTS):
        found = allocate(groups, budget, aim)
        reached = clock.of(found)
        history.append(Step(found.cost, reached, found.error))
        distance = abs(reached / target - 1)
        if best is None or distance < best[0]:
            best = (distance, found, reached)
        if distance <= CLOSE or (not found.met and reached > target * (1 + TOLERANCE)):
            break
        # what is saved is off by a factor; measurements are noisy, so all that were made have a say
        factors.append(max(0.1, (budget.dense - reached) / max(1e-9, budget.dense - found.cost)))
        aim = budget.dense - (budget.dense - target) / statistics.median(factors)
    assert best is not None
    return best[1], best[2], history

"""What a search found, for people and for programs."""

from dataclasses import asdict, dataclass
from typing import Any

from ...models.spec import CompressionSpec
from .sensitivity import Group
from .target import show


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
            values = ["dense" if number is None else str(number) for number in (dense, value)]
            lines.append(f"{name:{width}} {values[0]:>6} {values[1]:>6} {error:8.5f}")
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

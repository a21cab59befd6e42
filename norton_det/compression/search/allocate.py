"""Values for all groups, so that a cost is met at the least summed error: greedy, then refilled.

Minimised is the sum over groups of the error of the value chosen (``sensitivity``), subject to the cost of the whole
network being at most the target. Starting from the dense network, each step makes the change with the smallest error
per cost that it saves (what it saves beyond the target does not count); changes may jump over values, so that a curve
need not be convex. As the last step mostly saves too much, values then go back up where the error falls most per cost,
as long as the target holds, and what is left goes to values between those of the grid.

Costs of widths multiply, so this is no exact optimum; of separable costs it would be the Lagrangian one but for its
last step (Shoham and Gersho, 1988).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .costs import CostModel
from .sensitivity import Group

FULL = 0.98  # of a target is met well enough: widths stay multiples that kernels like


@dataclass
class Allocation:
    """An assignment, its cost and summed error, and whether it meets the target; ``path``: (cost, error) of a step."""

    assignment: dict[str, int | None]
    cost: float
    error: float
    met: bool
    path: list[tuple[float, float]] = field(default_factory=list)


def allocate(groups: Sequence[Group], costs: CostModel, target: float) -> Allocation:
    """The assignment for a target; where none meets it, the cheapest that was found.

    Args:
        groups: values and errors.
        costs: of every assignment, in the unit of the target.
        target: at most so much.
    """
    greedy = _Greedy(groups, costs)
    path = [(greedy.cost, 0.0)]
    while greedy.cost > target and greedy.step_down(greedy.cost - target):
        path.append((greedy.cost, greedy.error))
    met = greedy.cost <= target
    while met and greedy.step_up(target - greedy.cost):
        pass
    cost, error = greedy.cost, greedy.error
    refined: set[str] = set()  # groups whose value is none of theirs any more
    while met and cost < FULL * target and (finer := greedy.between(target - cost, refined)):
        gained, name, value = finer
        greedy.assignment[name] = value
        refined.add(name)
        cost, error = costs.total(greedy.assignment), error - gained
    return Allocation(greedy.assignment, cost, error, met, [*path, (cost, error)])


class _Greedy:
    """An assignment on the grid of the groups' values, and its cost; ``positions``: of each group's value in it."""

    def __init__(self, groups: Sequence[Group], costs: CostModel) -> None:
        self.groups, self.costs = groups, costs
        self.assignment = costs.network.dense()
        self.positions = {group.name: 0 for group in groups}
        self.cost = costs.total(self.assignment)

    @property
    def error(self) -> float:
        return sum(group.errors[self.positions[group.name]] for group in self.groups)

    def _change(self, group: Group, value: int | None) -> float:
        return self.costs.change(self.assignment, group.name, value)

    def _take(self, group: Group, position: int, change: float) -> None:
        self.assignment[group.name], self.positions[group.name] = group.values[position], position
        self.cost += change

    def step_down(self, excess: float) -> bool:
        """Make the change with the smallest error per cost that it saves, of which the excess alone counts."""
        best: tuple[float, float, Group, int] | None = None
        for group in self.groups:
            current = self.positions[group.name]
            for position in range(current + 1, len(group.values)):
                change = self._change(group, group.values[position])
                useful = min(-change, excess)
                if useful <= 0:
                    continue
                score = (group.errors[position] - group.errors[current]) / useful
                if best is None or (score, change) < best[:2]:
                    best = (score, change, group, position)
        if best:
            _, change, group, position = best
            self._take(group, position, change)
        return best is not None

    def step_up(self, room: float) -> bool:
        """Make the change back up that lowers the error most per cost, within the room."""
        best: tuple[float, Group, int, float] | None = None
        for group in self.groups:
            current = self.positions[group.name]
            for position in range(current - 1, -1, -1):
                added = self._change(group, group.values[position])
                gained = group.errors[current] - group.errors[position]
                if added > room or gained < 0 or (gained == 0 and added >= 0):
                    continue
                score = gained / max(added, 1e-9)
                if best is None or score > best[0]:
                    best = (score, group, position, added)
        if best:
            self._take(*best[1:])
        return best is not None

    def between(self, room: float, refined: set[str]) -> tuple[float, str, int] | None:
        """The value between two of a group's that uses the room for the largest gain, by interpolation.

        Costs rise with the value, so the largest that fits is found by halving.

        Returns:
            The gain, the group's name and the value; ``None`` if nothing fits.
        """
        best: tuple[float, str, int] | None = None
        for group in self.groups:
            current = self.positions[group.name]
            low, high = group.values[current], group.values[current - 1] if current else None
            if low is None or high is None or group.name in refined:
                continue
            fits, above = low, high
            while above - fits > 1:
                middle = (fits + above) // 2
                fits, above = (middle, above) if self._change(group, middle) <= room else (fits, middle)
            gained = (group.errors[current] - group.errors[current - 1]) * (fits - low) / (high - low)
            if fits > low and (best is None or gained > best[0]):
                best = (gained, group.name, fits)
        return best

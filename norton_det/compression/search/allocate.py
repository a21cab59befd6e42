"""Values for all groups, so that a cost is met at the least summed error: greedy, then refilled.

Minimised is the sum over groups of the error of the value chosen (``sensitivity``), subject to the cost of the whole
network being at most the target. Starting from the dense network, each step makes the change with the smallest error
per cost that it saves (what it saves beyond the target does not count); changes may jump over values, so that a curve
need not be convex. As the last step mostly saves too much, values then go back up where the error falls most per cost,
as long as the target holds, and what is left goes to values between those of the grid.

Costs of widths multiply, so this is no exact optimum; of separable costs it would be the Lagrangian one but for its
last step (Shoham and Gersho, 1988).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .costs import Assignment, CostModel
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
    assignment, at = costs.network.dense(), {group.name: 0 for group in groups}
    cost, path = costs.total(assignment), [(costs.total(assignment), 0.0)]
    while cost > target:
        best: tuple[float, float, Group, int, float] | None = None
        for group in groups:
            now = at[group.name]
            for index in range(now + 1, len(group.values)):
                saved = -costs.change(assignment, group.name, group.values[index])
                useful = min(saved, cost - target)
                if useful <= 0:
                    continue
                score = (group.errors[index] - group.errors[now]) / useful
                if best is None or (score, -saved) < best[:2]:
                    best = (score, -saved, group, index, saved)
        if best is None:
            break
        _, _, group, index, saved = best
        assignment[group.name], at[group.name] = group.values[index], index
        cost -= saved
        path.append((cost, _error(groups, at)))
    met = cost <= target
    while met and (step := _upwards(groups, costs, assignment, at, target - cost)):
        group, index, added = step
        assignment[group.name], at[group.name] = group.values[index], index
        cost += added
    error = _error(groups, at)
    between: set[str] = set()  # groups whose value is none of theirs any more
    while met and cost < FULL * target and (finer := _between(groups, costs, assignment, at, target - cost, between)):
        gained, name, value = finer
        assignment[name] = value
        between.add(name)
        cost, error = costs.total(assignment), error - gained
    return Allocation(assignment, cost, error, met, [*path, (cost, error)])


def _upwards(
    groups: Sequence[Group], costs: CostModel, assignment: dict[str, int | None], at: Mapping[str, int], room: float
) -> tuple[Group, int, float] | None:
    """The change back up that lowers the error most per cost, within the room; with what it costs."""
    best: tuple[float, Group, int, float] | None = None
    for group in groups:
        now = at[group.name]
        for index in range(now - 1, -1, -1):
            added = costs.change(assignment, group.name, group.values[index])
            gained = group.errors[now] - group.errors[index]
            if added > room or gained < 0 or (gained == 0 and added >= 0):
                continue
            score = gained / max(added, 1e-9)
            if best is None or score > best[0]:
                best = (score, group, index, added)
    return best[1:] if best else None


def _between(
    groups: Sequence[Group],
    costs: CostModel,
    assignment: Assignment,
    at: Mapping[str, int],
    room: float,
    taken: set[str],
) -> tuple[float, str, int] | None:
    """The value between two of a group's that uses the room for the largest gain, by interpolation: gain, name, value.

    Costs rise with the value, so the largest that fits is found by halving.
    """
    best: tuple[float, str, int] | None = None
    for group in groups:
        now = at[group.name]
        low, high = group.values[now], group.values[now - 1] if now else None
        if low is None or high is None or group.name in taken:
            continue
        fits, above = low, high
        while above - fits > 1:
            middle = (fits + above) // 2
            fits, above = (middle, above) if costs.change(assignment, group.name, middle) <= room else (fits, middle)
        gained = (group.errors[now] - group.errors[now - 1]) * (fits - low) / (high - low)
        if fits > low and (best is None or gained > best[0]):
            best = (gained, group.name, fits)
    return best


def _error(groups: Sequence[Group], at: Mapping[str, int]) -> float:
    return sum(group.errors[at[group.name]] for group in groups)

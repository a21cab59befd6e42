"""Ranks and ratios for a target: so many MACs, parameters, or milliseconds.

    found = nd.search(detector, target_macs="40%", calibration=pictures)
    result = nd.compress_detector(detector, found.spec, layout=found.layout, calibration=pictures)

1. Every width and rank that could be chosen gets an error, on one scale for all layers (``sensitivity``, or measured
   on images ``image_sensitivity``).
2. ``allocate`` takes those that save most for their error until the target is met.
3. A target of milliseconds is measured (``measured_latency``): of a quick version of that network, fused, in turns with
   the dense one. Where the prediction (``latency``) was off, ``allocate`` has another go at a corrected target.

What is minimised is the sum of the groups' errors, each measured alone. The network itself is not compressed here.
"""

import time
from collections.abc import Sequence
from typing import Any

from ...utils.errors import InputError
from ...utils.timing import environment
from .allocate import allocate
from .costs import CostModel
from .latency import LatencyModel
from .measured_latency import LatencyMeter, allocate_measured
from .problem import problem_of
from .result import SearchResult, Step
from .sensitivity import Group
from .settings import SearchSettings
from .target import parse_target, show


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
    settings: SearchSettings | None = None,
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
        settings: what is looked at, how it is timed, and how near is near enough.

    Raises:
        InputError: not one target, not a dense network, or a target that cannot be met within 5 %; that message names
            the best that was reached.
    """
    started = time.perf_counter()
    settings = settings or SearchSettings()
    targets = {"macs": target_macs, "params": target_params, "latency_ms": target_latency_ms}
    asked = {kind: value for kind, value in targets.items() if value is not None}
    if len(asked) != 1:
        raise InputError(
            f"search: expected one of target_macs, target_params, target_latency_ms, got {len(asked)}; give one"
        )
    kind, text = next(iter(asked.items()))
    parse_target(text, kind)  # refused before long work
    if rounds is not None and rounds < 1:
        raise InputError(f"rounds: expected 1 or more, got {rounds}; leave it out")
    problem = problem_of(model, calibration, input_size)
    network = problem.network
    meter = LatencyMeter(problem, settings.measure, rounds, progress) if kind == "latency_ms" else None
    dense = meter.dense if meter else float(getattr(network.complexity, kind))
    target = parse_target(text, kind, dense)
    if target >= dense:
        raise InputError(
            f"target_{kind}: expected less than the dense network's {show(kind, dense)}, got {show(kind, target)}; "
            "lower it"
        )
    groups = problem.sensitivity(settings, progress) if sensitivity is None else list(sensitivity)
    if meter:
        predicted = LatencyModel(network, dense, settings.measure, min(meter.rounds, 7), progress)
        allocation, reached, history = allocate_measured(groups, predicted, target, meter, settings)
    else:
        allocation = allocate(groups, CostModel(network, kind), target)
        reached, history = allocation.cost, [Step(allocation.cost, allocation.cost, allocation.error)]
    if abs(reached / target - 1) > settings.tolerance:
        raise InputError(
            f"target_{kind}: expected what ranks and ratios can reach, got {show(kind, target)}; the best that was "
            f"reached is {show(kind, reached)} of {show(kind, dense)}; choose a target near it"
        )
    spec, layout = network.to_spec(allocation.assignment)
    start, errors = network.dense(), {group.name: group for group in groups}
    chosen = [
        (name, start[name], value, errors[name].error_of(value) if name in errors else 0.0)
        for name, value in allocation.assignment.items()
    ]
    return SearchResult(
        spec=spec,
        layout={candidate.name: layout.get(candidate.name) for candidate in network.around},
        kind=kind,
        target=target,
        reached=reached,
        dense=dense,
        error=allocation.error,
        history=tuple(history),
        chosen=tuple(chosen),
        sensitivity=tuple(groups),
        input_size=network.complexity.input_size,
        seconds=time.perf_counter() - started,
        where=environment() if meter else "",
    )

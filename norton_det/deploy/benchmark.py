"""Latency of detectors in every form they run in, side by side, end to end and by part.

A *form* is how a detector runs:

================  ===========================================================================================
eager             the detector as it is trained
fused             the same with CP layers as two convolutions, normalisation folded, channels_last
deploy            ``DetectorGraph`` in PyTorch: fused, and proposals, RoIAlign and NMS written for inference
deploy-bf16       the same in bfloat16 (autocast); deploy-fp16 in float16, on a GPU
onnxruntime       the exported graph in ONNX Runtime
openvino          in OpenVINO, float32; openvino-bf16, openvino-int8
================  ===========================================================================================

End to end is a picture (H, W, 3), uint8, to detections in its pixels, one at a time.
"""

import functools
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models.fuse import fuse
from ..models.stacks import stack_of
from ..utils.errors import InputError
from ..utils.options import FILE_FORMS, FORMS, TORCH_FORMS
from .clock import with_rest
from .export import export
from .predictor import Predictor


@dataclass(frozen=True)
class Runner:
    """One picture through a detector in a form.

    Attributes:
        call: end to end.
        size: bytes of weights or file.
        parts: runs it and gives the seconds of its parts, see ``time_parts``.
    """

    call: Callable[[], Any]
    size: int
    parts: Callable[[], dict[str, float]]


def available_forms(device: torch.device | str = "cpu") -> list[str]:
    """Forms whose engines are installed, for detectors on this device."""
    if torch.device(device).type != "cpu":
        return list(TORCH_FORMS)
    engines = [form for form, (_, _, module) in FILE_FORMS.items() if importlib.util.find_spec(module)]
    return [form for form in TORCH_FORMS if form != "deploy-fp16"] + engines


def make_call(
    detector: nn.Module,
    form: str,
    picture: np.ndarray,
    folder: Path,
    calibration: Sequence[np.ndarray] = (),
    threads: int | None = None,
) -> Runner:
    """What runs one picture through a detector in a form.

    Args:
        detector: in eval mode.
        form: one of ``FORMS``.
        picture: (H, W, 3), uint8, RGB; the network's input has its size.
        folder: for exported files.
        calibration: pictures for int8; by default the one.
        threads: of the engines; PyTorch's are what ``torch.set_num_threads`` says.

    Raises:
        InputError: an unknown form, or its engine is not installed.
    """
    if form not in FORMS:
        raise InputError(f"form: expected {', '.join(FORMS)}, got {form!r}; choose some of them")
    size = {"min_size": min(picture.shape[:2]), "max_size": max(picture.shape[:2])}
    if form in ("eager", "fused"):
        model = fuse(detector).to(memory_format=torch.channels_last) if form == "fused" else detector
        stack, device = stack_of(detector), next(model.parameters()).device
        call = stack.native_call(model, picture)
        methods = {name: (module, "forward") for name, module in stack.native_parts(model).items()}
        return Runner(call, _bytes(model), lambda: with_rest(call, methods, device))
    if form in TORCH_FORMS:
        precision = form.partition("-")[2].replace("fp16", "f16") or "f32"
        predictor = Predictor(detector, precision=precision, **size)
        return _of_predictor(predictor, picture, _bytes(detector))
    ending, precision, _ = FILE_FORMS[form]
    path = folder / f"{form}{ending}"
    pictures = (list(calibration) or [picture]) if precision == "int8" else None
    export(detector, path, precision=precision, calibration=pictures, **size)
    files = (path, path.with_suffix(".bin")) if ending == ".xml" else (path,)
    predictor = Predictor(path, threads=threads)
    return _of_predictor(predictor, picture, sum(file.stat().st_size for file in files))


def _of_predictor(predictor: Predictor, picture: np.ndarray, size: int) -> Runner:
    outputs = functools.cache(lambda: predictor.run(predictor.prepare(picture)))  # for ``parts`` alone

    def parts() -> dict[str, float]:
        started = time.perf_counter()
        pixels = predictor.prepare(picture)
        prepared = time.perf_counter()
        seconds = predictor.engine.parts(pixels)
        results, run = outputs(), time.perf_counter()
        predictor.finish(results, *picture.shape[:2])
        return {"prepare": prepared - started, **seconds, "finish": time.perf_counter() - run}

    return Runner(lambda: predictor(picture), size, parts)


def time_parts(runner: Runner, rounds: int = 3) -> dict[str, float]:
    """Median milliseconds of each part of a frame.

    Parts: prepare, backbone, rpn_head, proposals, pooling, box_head, mask_head, keypoint_head, finish, and ``rest``.
    In OpenVINO they are sums of nodes' times, and proposals and NMS are in ``rest``; ONNX Runtime has ``rest`` alone.
    Eager and fused detectors have backbone, rpn (its head and proposals), roi_heads (pooling, heads, NMS), and rest.
    """
    collected: dict[str, list[float]] = defaultdict(list)
    for index in range(rounds + 1):
        for name, seconds in runner.parts().items():
            if index:  # the first one warms up
                collected[name].append(1e3 * seconds)
    return {name: float(np.median(values)) for name, values in collected.items()}


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def peak_memory() -> float:
    """Most megabytes of memory that this process has held so far.

    Linux tells it of the program alone; ``getrusage`` there counts what the process was before it became this program.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS

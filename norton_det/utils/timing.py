"""Latency of several models side by side: warmed up, synchronised, interleaved, median.

Machines are noisy: clocks change, other work comes and goes. So the candidates take turns, call by call, and
meet the same noise; the ratio of their medians is what a figure should be made of.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from tqdm import tqdm

from .errors import InputError

Name = TypeVar("Name", str, tuple[str, str])


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of each measured call of one candidate."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the calls, in seconds."""
        return statistics.median(self.seconds)

    @property
    def fps(self) -> float:
        """Calls in a second, by the median."""
        return 1 / self.median

    @property
    def spread(self) -> tuple[float, float]:
        """First and last decile in seconds: the range that 8 of 10 calls fall into."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        deciles = statistics.quantiles(self.seconds, n=10, method="inclusive")
        return deciles[0], deciles[-1]

    def percentile(self, share: int) -> float:
        """The seconds that ``share`` per cent of the calls stay below."""
        if len(self.seconds) < 2:
            return self.seconds[0]
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[share - 1]


def measure(
    candidates: Mapping[Name, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[Name, Timing]:
    """Time candidates in turns: in every round each is called once.

    Args:
        candidates: calls by name, such as ``lambda: model(image)``.
        rounds: measured calls of each.
        warmup: calls of each before, not counted.
        device: synchronised around every call when it is not the CPU.
        progress: show a bar.
    """
    if rounds < 1 or warmup < 0 or not candidates:
        raise InputError(f"timing: expected candidates, rounds >= 1, warmup >= 0, got {rounds} and {warmup}")
    kind = torch.device(device).type
    seconds: dict[Name, list[float]] = {name: [] for name in candidates}
    with torch.inference_mode():
        for index in tqdm(range(warmup + rounds), desc="timing", unit="round", disable=not progress):
            for name, call in candidates.items():
                _synchronize(kind)
                started = time.perf_counter()
                call()
                _synchronize(kind)
                if index >= warmup:
                    seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def environment(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """What a timing has to say of where it was made: device, threads, dtype, PyTorch."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else f"{kind}, {torch.get_num_threads()} threads"
    return f"{name}, {str(dtype).removeprefix('torch.')}, PyTorch {torch.__version__}"


def _synchronize(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()
    elif kind == "mps":
        torch.mps.synchronize()

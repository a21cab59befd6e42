"""Seconds that methods take while something runs."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def with_rest(run: Callable[[], Any], methods: Mapping[str, tuple[Any, str]], device: torch.device) -> dict[str, float]:
    """Seconds of methods during a run, and of all else as ``rest``."""
    started = time.perf_counter()
    with _clocked(methods, device) as spent:
        run()
    seconds = time.perf_counter() - started
    return {**spent, "rest": max(0.0, seconds - sum(spent.values()))}


@contextlib.contextmanager
def _clocked(parts: Mapping[str, tuple[Any, str]], device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds spent in methods while the block runs; what one timed method calls counts for the inner one alone."""
    spent: dict[str, float] = dict.fromkeys(parts, 0.0)
    inner: list[float] = []

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def clock(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            wait()
            started = time.perf_counter()
            inner.append(0.0)
            result = method(*args, **kwargs)
            wait()
            seconds = time.perf_counter() - started
            spent[name] += seconds - inner.pop()
            if inner:
                inner[-1] += seconds
            return result

        return timed

    for name, (owner, attribute) in parts.items():
        setattr(owner, attribute, clock(name, getattr(owner, attribute)))
    try:
        yield spent
    finally:
        for owner, attribute in parts.values():
            delattr(owner, attribute)

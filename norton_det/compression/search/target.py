"""Targets as people write them: so many MACs, parameters, or milliseconds, or a share of the dense network's."""

import re

from ...utils.errors import InputError

UNITS = {"macs": ("G MACs", 1e9), "params": ("M params", 1e6), "latency_ms": ("ms", 1.0)}
TARGETS = tuple(f"target_{kind}" for kind in UNITS)
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_TARGET = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*(%|ms|[kmgt]?)", re.IGNORECASE)


def parse_target(value: float | str, kind: str, dense: float | None = None) -> float:
    """A target as a number; a share needs what the dense network has.

    Raises:
        InputError: not such a number, or not above 0.
    """
    examples = {"macs": "25G, 25e9", "params": "12.5M, 12.5e6", "latency_ms": "300, 300ms"}[kind]
    match = _TARGET.fullmatch(str(value).strip())
    unit = match[2].lower() if match else ""
    number = float(match[1]) if match else -1.0
    wrong = (unit == "ms") is not (kind == "latency_ms") and unit not in ("", "%")
    if isinstance(value, bool) or not match or wrong or not 0 < number < float("inf"):
        raise InputError(f"target_{kind}: expected a number such as {examples} or 40%, got {value!r}; write it so")
    if unit == "%":
        return number / 100 * (dense if dense is not None else 1.0)
    return number * _FACTORS.get(unit, 1.0)


def show(kind: str, value: float) -> str:
    """A cost in words, such as 25.02 G MACs."""
    unit, scale = UNITS[kind]
    return f"{value / scale:.{1 if kind == 'latency_ms' else 2}f} {unit}"

"""Lists of numbers as the NORTON release writes them, ``[0.]+[0.1]*2``: read without evaluating, and written."""

import re
import reprlib
from collections.abc import Sequence

from ..utils.errors import InputError

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"  # one way to match each: no exponential backtracking
_TERM = re.compile(rf"\[\s*({_NUMBER}(?:\s*,\s*{_NUMBER})*)\s*,?\s*\](?:\s*\*\s*(\d{{1,9}}))?")
_PLAIN = re.compile(rf"{_NUMBER}(?:[\s,]+{_NUMBER})*")
_MAX_LENGTH = 1000  # no network has more blocks; a typing slip must not fill the memory


def parse_list(text: str, field: str = "ratios") -> list[float]:
    """Numbers of ``[0.]+[0.1]*2+[0.4]*5``, ``[0, 0.1, 0.2]`` or ``0,0.1,0.2``; nothing is evaluated.

    Raises:
        InputError: the text is not such a list, or has more than 1000 numbers.
    """
    stripped = text.strip()
    if _PLAIN.fullmatch(stripped):
        return [float(number) for number in re.split(r"[\s,]+", stripped)]
    numbers: list[float] = []
    position = 0
    while True:
        term = _TERM.match(stripped, position)
        if term is None:
            raise InputError(
                f"{field}: expected a list such as [0.]+[0.1]*2+[0.4]*17 or 0,0.1,0.1, got {shorten(text)}; "
                f"the problem is at character {position + 1}"
            )
        times = int(term[2] or 1)
        term_numbers = [float(number) for number in term[1].split(",") if number.strip()]
        if len(numbers) + times * len(term_numbers) > _MAX_LENGTH:
            raise InputError(f"{field}: expected at most {_MAX_LENGTH} numbers, got {shorten(text)}; use fewer")
        numbers += term_numbers * times
        position = term.end()
        separator = re.compile(r"\s*\+\s*").match(stripped, position)
        if separator is None:
            if position != len(stripped):
                raise InputError(
                    f"{field}: expected '+' or the end at character {position + 1} of {shorten(text)}; "
                    "write [0.]+[0.1]*2"
                )
            return numbers
        position = separator.end()


def format_list(numbers: Sequence[float]) -> str:
    """The shortest ``[a]*n+[b]*m`` form; ``parse_list`` reads it back unchanged."""
    runs: list[tuple[float, int]] = []
    for number in numbers:
        if runs and runs[-1][0] == number:
            runs[-1] = (number, runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return "+".join(f"[{_shortest(number)}]" + (f"*{count}" if count > 1 else "") for number, count in runs)


def _shortest(number: float) -> str:
    text = f"{number:g}"
    return text if float(text) == number else repr(number)


def shorten(value: object, limit: int = 60) -> str:
    nested = isinstance(value, list | tuple) and any(isinstance(item, list | tuple | dict) for item in value)
    text = reprlib.repr(value) if nested else repr(value)  # lists that share their parts are long only when written
    return text if len(text) <= limit else text[: limit - 3] + "..."

"""Tables of results: rows of long work, kept in a CSV as they come, so that it can be resumed; and Markdown of rows."""

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .files import atomic_path


class Table:
    """Rows that are kept in a CSV after each, so that work that was cut off goes on where it stopped."""

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys = path, keys
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [{key: _number(text) for key, text in row.items()} for row in csv.DictReader(file)]

    def missing(self, runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The keys of those runs that have no row yet, with a progress bar."""
        done = {tuple(str(row[key]) for key in self.keys) for row in self.rows}
        remaining = [dict(run) for run in runs if tuple(str(run[key]) for key in self.keys) not in done]
        return iter(tqdm(remaining, self.path.stem, unit="row"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row and write the CSV; the columns are the fields of all rows, in the order of their coming."""
        self.rows.append(dict(row))
        fields = list(dict.fromkeys(field for row in self.rows for field in row))
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
                for row in self.rows
            )


def markdown(rows: Sequence[Mapping[str, Any]], digits: int = 2) -> str:
    """Rows as a Markdown table; fractions are rounded to ``digits``, what is missing is a dash."""
    fields = list(dict.fromkeys(field for row in rows for field in row))

    def cell(value: Any) -> str:
        if value is None or value == "":
            return "-"
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    lines = [
        f"| {' | '.join(fields)} |",
        "|" + "|".join(" --- " if i == 0 else " ---: " for i in range(len(fields))) + "|",
    ]
    lines += [f"| {' | '.join(cell(row.get(field)) for field in fields)} |" for row in rows]
    return "\n".join(lines) + "\n"


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean and the standard deviation as text, such as ``1.50 ± 0.71``."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def _number(text: str) -> Any:
    """A cell of a CSV as the number it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

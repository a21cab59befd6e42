"""The table of promises: rows that tests put down, added up and printed when all have run."""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest

PAGE = """# Reliability

What `make reliability PROMISES=docs/results/reliability.md` found in {minutes:.0f} minutes: how often each promise of
[SECURITY.md](../../SECURITY.md) was tried and kept, and then each fault with what a user gets.

"""
STARTED = time.monotonic()


@dataclass(frozen=True)
class Row:
    """A promise: how often it was tried and how often kept, and what else is worth knowing (numbers are added up)."""

    promise: str
    kept: int
    tried: int = 1
    detail: str | dict[str, int] = ""

    def __add__(self, other: "Row") -> "Row":
        mine, theirs = self.detail, other.detail
        detail: str | dict[str, int]
        if isinstance(mine, dict) and isinstance(theirs, dict):
            detail = {name: mine.get(name, 0) + theirs.get(name, 0) for name in mine | theirs}
        else:
            detail = "; ".join(dict.fromkeys(text for text in (str(mine or ""), str(theirs or "")) if text))
        return Row(self.promise, self.kept + other.kept, self.tried + other.tried, detail)

    def told(self) -> str:
        counts = self.detail.items() if isinstance(self.detail, dict) else ()
        text = self.detail if isinstance(self.detail, str) else ", ".join(f"{count} {name}" for name, count in counts)
        return text[:600].replace("|", "/")


@pytest.fixture
def keep(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """``keep(*rows)``: put them down, and fail where a promise was broken."""

    def put_down(*rows: Row) -> None:
        for row in rows:
            record_property("promise", astuple(row))
        broken = [f"{row.promise}: {row.kept} of {row.tried}: {row.told()}" for row in rows if row.kept != row.tried]
        assert not broken, "\n".join(broken)

    return put_down


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--promises", metavar="FILE", help="write the tables of promises and faults there, in Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "promise(text): each test of that mark tries this promise once")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("promise"):
        item.user_properties.append(("tries", mark.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it where it is asked for."""
    rows: dict[str, Row] = {}
    faults: list[tuple[str, ...]] = []
    for report in (one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, ())):
        if report.when != "call":
            continue
        for name, value in report.user_properties:
            if name == "fault":
                faults.append(tuple(value))
            elif name in ("promise", "tries"):
                row = Row(*value) if name == "promise" else Row(value, int(report.passed))
                rows[row.promise] = rows[row.promise] + row if row.promise in rows else row
    if not rows:
        return
    terminalreporter.section("promises")
    for row in rows.values():
        terminalreporter.write_line(
            f"{row.kept:>7} of {row.tried:<7} {row.promise}" + f" ({row.told()})" * bool(row.detail)
        )
    kept = sum(row.kept == row.tried for row in rows.values())
    minutes = (time.monotonic() - STARTED) / 60
    terminalreporter.write_line(f"{kept} of {len(rows)} promises kept, {minutes:.1f} minutes")
    if path := config.getoption("--promises"):
        Path(path).write_text(PAGE.format(minutes=minutes) + to_markdown(rows.values(), sorted(faults)))


def to_markdown(rows: Iterable[Row], faults: list[tuple[str, ...]]) -> str:
    """The promises, and of each fault what a user gets."""
    lines = ["| promise | kept | tried | |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {row.promise} | {row.kept} | {row.tried} | {row.told()} |" for row in rows]
    lines += ["", "## Faults", "", "| | fault | what the user gets | exit |", "| --- | --- | --- | ---: |"]
    for group, name, line, status in faults:
        told = re.sub(r"/\S*/(?=\S)", "", " ".join(line.split())).replace("|", "/").replace("<", "&lt;")
        lines.append(f"| {group} | {name} | {told[:240]} | {status} |")
    return "\n".join(lines) + "\n"

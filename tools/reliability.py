#!/usr/bin/env python3
"""Provoke what can go wrong, and print how often each promise of SECURITY.md was kept.

faults    each in a process of its own: one line, no traceback, a minute, 4 GiB
guards    each guard taken away once: its check has to fail
kills     SIGKILL at random points of saving
resume    a training that is cut off anywhere and goes on, bit for bit
fuzz      mutated checkpoints
payloads  files that try to run code
numerics  equal input gives equal bytes; property tests of the mathematics
load      the demo's server under bad clients

Exit status 1 when a promise was broken."""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from norton_det.commands.parser import parser, run

# isort: split
import torch
from trust import faults
from trust.cases import Row

from norton_det.utils.errors import InputError
from norton_det.utils.files import atomic_path, require_writable

SHORT = ("faults", "kills", "resume", "fuzz", "payloads")
CHECKS = ("faults", "guards", "kills", "resume", "fuzz", "payloads", "numerics", "load")
EXAMPLES = """
  tools/reliability.py                                        # all of it, half an hour on two cores
  tools/reliability.py --short                                # the same checks, fewer cases
  tools/reliability.py faults payloads                        # these alone
  tools/reliability.py --markdown docs/results/reliability.md --json reliability.json
"""


def make_parser() -> argparse.ArgumentParser:
    own = parser(__doc__, EXAMPLES)
    own.add_argument(
        "checks",
        nargs="*",
        metavar="CHECK",
        help=f"of {', '.join(CHECKS)}; all by default, in the short form {', '.join(SHORT)}",
    )
    own.add_argument("--short", action="store_true", help="fewer cases")
    own.add_argument("--markdown", metavar="FILE", help="write the tables there")
    own.add_argument("--json", metavar="FILE", help="write the rows there")
    return own


def main() -> int:
    args = make_parser().parse_args()
    for name in args.checks:
        if name not in CHECKS:
            raise InputError(f"check: expected some of {', '.join(CHECKS)}, got {name!r}; choose among them")
    for path in (args.markdown, args.json):
        if path:
            require_writable(path)
    torch.set_num_threads(1)  # checks fork, and threads do not survive that
    chosen = [name for name in CHECKS if name in (args.checks or (SHORT if args.short else CHECKS))]
    rows: list[Row] = []
    told = ""
    with tempfile.TemporaryDirectory(prefix="norton_det_reliability_") as place:
        beside, load = Path(place) / "load.json", None
        for name in chosen:
            if name == "load" and load is not None:
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            folder = Path(place) / name
            folder.mkdir()
            if name == "faults":
                verdicts = faults.run(folder, args.short)
                found, told = faults.to_rows(verdicts), faults.table(verdicts)
            else:
                # ten minutes beside the other checks, but not beside faults, which have a minute each
                if load is None and chosen[-1] == "load" and name != "load" and not args.short:
                    load = start_load(beside)
                found = importlib.import_module(f"trust.{name}").check(args.short, folder)
            shutil.rmtree(folder, ignore_errors=True)
            rows += show(found)
        if load is not None:
            print("load ...", file=sys.stderr, flush=True)
            load.wait()
            if not beside.exists():
                raise InputError(f"load: expected its results, got exit status {load.returncode}; run it alone")
            rows += show([Row(**fields) for fields in json.loads(beside.read_text())])
    if args.markdown:
        with atomic_path(args.markdown) as temporary:
            temporary.write_text(to_markdown(rows) + (f"\n{told}" if told else ""))
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    kept = sum(row.kept == row.tried for row in rows)
    print(f"{kept} of {len(rows)} promises kept")
    return 0 if kept == len(rows) else 1


def start_load(results: Path) -> subprocess.Popen[bytes]:
    """The load in a process of its own; it writes its rows to ``results``."""
    return subprocess.Popen([sys.executable, __file__, "load", "--json", str(results)], stdout=subprocess.DEVNULL)


def show(rows: list[Row]) -> list[Row]:
    """Print the rows of a check."""
    for row in rows:
        print(f"{row.kept:>7} of {row.tried:<7} {row.promise}{f' ({row.detail})' if row.detail else ''}", flush=True)
    return rows


def to_markdown(rows: list[Row]) -> str:
    """The table of promises."""
    lines = ["| promise | kept | tried | |", "| --- | ---: | ---: | --- |"]
    cells = [[row.promise, str(row.kept), str(row.tried), row.detail] for row in rows]
    return "\n".join([*lines, *("| " + " | ".join(c.replace("|", "/") for c in row) + " |" for row in cells)]) + "\n"


if __name__ == "__main__":
    run(main)

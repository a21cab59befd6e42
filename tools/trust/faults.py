"""All faults of one table: checkpoints, decomposition, training, data, the demo."""

import importlib
import re
import sys
from pathlib import Path

from . import faults_checkpoint, faults_training
from .cases import Fault, Row, Verdict, run_faults

OTHERS = ("decomposition", "data", "demo")


def check(short: bool, folder: Path) -> list[Row]:
    """Every case; in the short form those of the demo are left to its own tests."""
    return to_rows(run(folder, short))


def to_rows(verdicts: list[Verdict]) -> list[Row]:
    """One for each group."""
    rows = []
    for group in dict.fromkeys(verdict.fault.group for verdict in verdicts):
        of_group = [verdict for verdict in verdicts if verdict.fault.group == group]
        broken = [f"{verdict.fault.name}: {verdict.problem}" for verdict in of_group if verdict.problem]
        rows.append(Row(f"faults: {group}", len(of_group) - len(broken), len(of_group), "; ".join(broken)[:600]))
    return rows


def run(folder: Path, short: bool = False, progress: bool = True) -> list[Verdict]:
    """All verdicts, by group."""
    found = []
    for verdict in run_faults(collect(folder, short)):
        found.append(verdict)
        if progress:
            state = f"FAILED: {verdict.problem}" if verdict.problem else "ok"
            print(f"  {verdict.fault.group}: {verdict.fault.name}: {state}", file=sys.stderr, flush=True)
    order = ["checkpoint", "decomposition", "training", "data", "demo"]
    return sorted(found, key=lambda verdict: order.index(verdict.fault.group))


def collect(folder: Path, short: bool = False) -> list[Fault]:
    """Every case (short: without the demo), once what they start from is made in ``folder``."""
    found = faults_checkpoint.faults(faults_training.make_trained(folder)) + faults_training.faults()
    for name in OTHERS[: 2 if short else 3]:
        module = importlib.import_module(f"trust.faults_{name}")
        found += module.faults(folder) if hasattr(module, "faults") else module.FAULTS
    return found


def table(verdicts: list[Verdict]) -> str:
    """In Markdown: what is wrong, and what the user gets."""
    lines = ["| | fault | what the user gets | exit |", "| --- | --- | --- | ---: |"]
    for verdict in verdicts:
        told = re.sub(r"\S*norton_det_\w+/", "", " ".join((verdict.problem or verdict.line).split()))
        told = told.replace("|", "/").replace("<", "&lt;")
        fault = verdict.fault
        lines.append(f"| {fault.group} | {fault.name} | {told[:240]} | {fault.status} |")
    return "\n".join(lines) + "\n"

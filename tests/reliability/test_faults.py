"""Every fault is told in one line, without a traceback, within a minute and 4 GiB."""

import pytest

from . import LONG, faults_checkpoint, faults_data, faults_demo, faults_training
from .faults import judge
from .promises import Row

FAULTS = [*faults_checkpoint.FAULTS, *faults_training.FAULTS, *faults_data.FAULTS]
FAULTS += faults_demo.FAULTS if LONG else []  # tests/live has as many of its own


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.group}: {fault.name}")
def test_fault(fault, place, keep, record_property):
    problem, line = judge(fault, place(fault))
    record_property("fault", (fault.group, fault.name, problem or line, fault.status))
    keep(Row(f"faults: {fault.group}", int(not problem), 1, f"{fault.name}: {problem}" if problem else ""))

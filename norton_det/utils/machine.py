"""Threads for the machine at hand, set before PyTorch is imported; it imports nothing itself.

Threads of OpenMP that wait for the others by spinning take the cores from these where anything else runs, and a
training is slow. And they are as many as there are cores, where a container may use a few of them.
"""

import math
import os
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def prepare_threads() -> None:
    """Have OpenMP's threads sleep while they wait, and be as many as this process may use, unless the environment says
    otherwise. Without effect once PyTorch is imported."""
    if "torch" in sys.modules:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cores = usable_cores()
    if cores < allowed_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def usable_cores() -> int:
    """The cores that this process may use at a time: those it may run on, or as many of them as its container has."""
    return max(1, min(allowed_cores(), _granted()))


def allowed_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _granted(root: Path = CGROUP) -> int:
    """Cores of a container's quota, rounded up, in either version of Linux's control groups; a large number without."""
    try:
        if (file := root / "cpu.max").is_file():
            quota, period = file.read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no quota: "max", or no such file
        return 1 << 16
    return cores if cores > 0 else 1 << 16

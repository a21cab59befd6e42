"""Threads for the machine at hand."""

import os
import subprocess
import sys

import pytest

from norton_det.utils import machine


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "max 100000\n"}, 1 << 16),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1 << 16),
        ({}, 1 << 16),
    ],
)
def test_cores_that_a_container_is_granted(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine._granted(tmp_path) == cores


@pytest.mark.parametrize(("granted", "threads"), [(1, "1"), (1 << 16, None)])
def test_the_environment_comes_first(monkeypatch, granted, threads):
    monkeypatch.setattr(machine, "_granted", lambda: granted)
    monkeypatch.setattr(machine, "allowed_cores", lambda: 4)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for given in ({}, {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3"}):
        monkeypatch.setattr(os, "environ", dict(given))
        machine.prepare_threads()
        expected = {"OMP_WAIT_POLICY": "PASSIVE"} | ({} if threads is None else {"OMP_NUM_THREADS": threads})
        assert os.environ == expected | given


def test_it_is_set_before_pytorch_is_imported():
    code = (
        "import os, sys; from norton_det.commands.main import call; assert 'torch' not in sys.modules\n"
        "call('zoo', [], 'zoo'); print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "PASSIVE"

"""The demo's commands answer before anything heavy is imported, and end quietly on Ctrl-C while it is."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY


def start(folder: Path, instead_of_torch: str, *words: object) -> subprocess.Popen:
    """A command in a process whose ``import torch`` runs this instead."""
    (folder / "torch.py").write_text(instead_of_torch)
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("words", "status", "pattern"),
    [
        (("demo.py", "--help"), 0, "examples:"),
        (("serve.py", "--help"), 0, "examples:"),
        (("demo.py", "--webcam", "--min-size", -1), 2, "error: --min-size: expected 0 or more pixels, got -1"),
        (("demo.py", "--no-such-option"), 2, "error: "),
        (("serve.py", "--port", 99999), 2, "error: --port: expected 0 to 65535, got 99999"),
        (("serve.py", "--ssl-certfile", "a.pem"), 2, "error: --ssl-certfile, --ssl-keyfile: expected both or neither"),
        (("serve.py", "--ssl-certfile", "a.pem", "--ssl-keyfile", "b.pem"), 2, "error: a.pem: .* found no such file"),
    ],
)
def test_options_are_looked_at_before_torch_is_imported(tmp_path, words, status, pattern):
    command, *rest = words
    out, err = (begun := start(tmp_path, "raise SystemExit(70)", f"tools/{command}", *rest)).communicate(timeout=60)
    assert begun.returncode == status and re.search(pattern, out + err), (out, err)


@pytest.mark.parametrize("words", [("demo.py", "--webcam"), ("serve.py", "--port", 0)])
def test_ctrl_c_while_torch_is_imported_is_one_line(tmp_path, words):
    command, *rest = words
    slow = "import time; print('importing', flush=True)\ntry: time.sleep(60)\nexcept BaseException: raise OSError\n"
    begun = start(tmp_path, slow, f"tools/{command}", *rest)
    assert begun.stdout.readline() == "importing\n"
    begun.send_signal(signal.SIGINT)
    _, err = begun.communicate(timeout=60)
    assert (begun.returncode, err) == (130, "interrupted\n")

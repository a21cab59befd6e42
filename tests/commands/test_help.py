"""Every command has help with examples."""

import os

import pytest

from tests import REPOSITORY

COMMANDS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("tools", "datasets")
    for path in (REPOSITORY / folder).glob("*.py")
    if "norton_det.commands" in path.read_text()  # set-up has its own
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help(call, name):
    status, out, _ = call(name, "--help")
    assert status == 0 and "examples:" in out
    examples = out.split("examples:")[1]
    assert f"{name} " in examples or f"{name}\n" in examples
    assert os.access(REPOSITORY / name, os.X_OK)


def test_all_commands_are_there():
    assert {"tools/compress.py", "tools/train_net.py", "tools/benchmark.py"} <= set(COMMANDS)

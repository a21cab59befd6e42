"""Every shell command of README.md and docs/ as it stands there, on a small folder with the files that it names.

A command has to end well, or to be at work still after ``SECONDS`` (NORTON_DET_DOCS_SECONDS, for a longer look) and
then end at Ctrl-C; what needs COCO, a network or a camera has to end in the line that says so.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from norton_det.commands.main import PROG, main
from norton_det.commands.parser import run as run_command
from norton_det.d2 import trainer  # noqa: F401  imported here, so that the forks need not
from norton_det.data.generate import generate_dataset
from tests import REPOSITORY
from tests.process import Ended, error_line, run, script

from .pages import LANGUAGES, NEEDS_SHAPES, NOT_RUN, blocks, commands, expected_line

SECONDS = float(os.environ.get("NORTON_DET_DOCS_SECONDS", 2))


def launched(words: list[str], folder: Path, seconds: float) -> Ended:
    """A command in a fork of this process, for so long at most, or a program that is not ours."""
    environment = {}
    if NEEDS_SHAPES.search(" ".join(words)):
        made = run(lambda: generate_dataset(folder / "datasets/norton_shapes"), folder, 120)
        assert made.status == 0, made.err
    runs = folder / "output/compare"
    trained = runs / "bccd_dense_faster_rcnn_1"
    if "compare.py" in words[0]:  # it would go on from these
        shutil.rmtree(runs, ignore_errors=True)
    elif not (trained / "model_final.pth").exists():
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(folder / "output/bccd_dense_faster_rcnn", trained, copy_function=os.link)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        name, _, environment[name] = words.pop(0).partition("=")
    if words[0] == "python" and words[1].endswith(".py"):
        words = words[1:]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        if words[0].endswith(".py"):
            return run(script([str(folder / words[0]), *words[1:]]), folder, seconds)
        if words[0] == PROG:
            return run(lambda: run_command(lambda: main(words[1:])), folder, seconds)
        words = [sys.executable, *words[1:]] if words[0] == "python" else words
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        return Ended(done.returncode, done.stdout, done.stderr, False)


def test_blocks_say_their_language():
    assert len(blocks()) > 60
    assert {(block.page, block.line): block.language for block in blocks() if block.language not in LANGUAGES} == {}


@pytest.mark.parametrize("command", [name for name in commands() if name.startswith(tuple(NOT_RUN))])
def test_targets_are_there(command):
    if command.startswith("make "):
        subprocess.run(["make", "-n", command.split()[1]], cwd=REPOSITORY, check=True, capture_output=True, timeout=60)
    elif command.startswith("python -m pytest "):
        assert (REPOSITORY / command.split()[3]).exists()


@pytest.mark.parametrize("command", [name for name in commands() if not name.startswith(tuple(NOT_RUN))])
def test_command(command, folder):
    lacking = expected_line(command)  # that line may take a busy machine longer
    found = launched(shlex.split(command), folder, 60 if lacking else SECONDS)
    told = f"{commands()[command]}: {command}\nstatus {found.status}\n{found.out[-2000:]}\n{found.err[-3000:]}"
    assert "Traceback" not in found.err, told
    if lacking:
        assert found.status == 2 and re.search(lacking, error_line(found.err)), told
    elif found.working:
        assert found.status in (0, 130), told  # a server ends well at Ctrl-C
    else:
        assert found.status == 0, told

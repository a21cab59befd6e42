"""SIGKILL at random points of saving: a whole checkpoint is always left, and it is found.

A process writes checkpoint after checkpoint of a training, and is killed at a random moment. What is left has to hold a
checkpoint whose content is that of its iteration, no later than the last that was announced as written, or the one that
was being written; and the next save has to remove what the killed one has left. Some of the processes meet a full
disk (a file-size limit, ENOSPC) instead.
"""

import errno
import logging
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from norton_det.checkpoint.torch_file import read_torch
from norton_det.d2.checkpoint import NortonCheckpointer
from norton_det.d2.files import newest_checkpoint
from norton_det.utils.errors import InputError

from . import LONG
from .promises import Row

SIZE = 120_000  # numbers of the weights, so that writing takes a few milliseconds
LONGEST = 0.25  # seconds until the kill
WAYS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGKILL", "RLIMIT_FSIZE", "ENOSPC")


class Counter(nn.Module):
    """Weights that tell the iteration they are of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SIZE))


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR, "norton_det")  # what is passed over is told each time


@pytest.mark.parametrize("number", range(200 if LONG else 24))
def test_a_whole_checkpoint_is_left(number, tmp_path, keep):
    keep(killed(number, tmp_path))


def killed(number: int, folder: Path) -> Row:
    """One kill point."""
    way = WAYS[number % len(WAYS)]
    problem = _attempt(folder, way, random.Random(number))
    told = f"{way}: {problem}" if problem else ""
    return Row("a whole checkpoint is left after a kill, and found", int(not problem), 1, told)


@pytest.mark.promise("a folder that cannot be written is told, nothing is lost")
def test_a_folder_that_cannot_be_written():
    """A place that the system lets nobody write to, not even root."""
    with pytest.raises(InputError, match="choose another place"):
        NortonCheckpointer(Counter(), "/proc/norton_det").save("model_0000000", iteration=0)


def _attempt(own: Path, way: str, chance: random.Random) -> str:
    """What went wrong; empty where the promise is kept."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _save_forever(own, way, writing)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as announced:
        said = b""
        while len(said) < 8:  # begun and written: the first one
            said += announced.read(8 - len(said))
        time.sleep(chance.uniform(0, LONGEST))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := announced.read(65536):
            said += more
    told = [int.from_bytes(said[place : place + 4], "little") for place in range(0, len(said), 4)]
    begun, written = (max(number // 2 for number in told if number % 2 == kind) for kind in (1, 0))
    newest = newest_checkpoint(own)
    if not newest:
        return "no whole checkpoint"
    content = read_torch(newest)
    found = content["iteration"]
    whole = torch.equal(content["model"]["weight"], torch.full((SIZE,), float(found)))
    if found not in (written, begun) or not whole:
        return f"iteration {found}, written {written}, begun {begun}"
    left = [file.name for file in own.glob(".*.part")]
    model = Counter()
    saver = NortonCheckpointer(model, str(own))
    extra = saver.resume_or_load("", resume=True)
    if extra.get("iteration") != found:
        return f"resumed from {extra.get('iteration')}, expected {found}"
    for name in {name[1:].rsplit(".", 2)[0] for name in left}:
        saver.save(name.removesuffix(".pth")) if name.endswith(".pth") else saver.tag_last_checkpoint(Path(newest).name)
    if still := [file.name for file in own.glob(".*.part")]:
        return f"left behind: {still[0]}"
    return ""


def _save_forever(own: Path, way: str, announce: int) -> None:
    """In a process of its own: save until the end, whatever the disk says; never returns."""
    try:
        if way == "RLIMIT_FSIZE":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        model = Counter()
        saver = NortonCheckpointer(model, str(own))
        for iteration in range(10_000):
            with torch.no_grad():
                model.weight.fill_(float(iteration))
            full = iteration % 2 == 1
            if way == "RLIMIT_FSIZE":
                limit = SIZE if full else resource.RLIM_INFINITY  # a quarter of the file
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            os.write(announce, (2 * iteration + 1).to_bytes(4, "little"))
            real = os.fsync
            if way == "ENOSPC" and full:
                os.fsync = _no_space
            try:
                saver.save(f"model_{iteration:07d}", iteration=iteration)
                os.write(announce, (2 * iteration).to_bytes(4, "little"))
            except InputError:
                if not full or way == "SIGKILL":
                    raise
            finally:
                os.fsync = real
            for old in sorted(own.glob("model_*.pth"))[:-4]:
                old.unlink()
    finally:
        os._exit(1)


def _no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

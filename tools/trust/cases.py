"""Faults, each provoked in a process of its own: what the user gets is held against what was promised.

A case fails when its process dies by a signal, prints a traceback, takes longer than a minute, wants more than 4 GiB,
or says or returns anything but what is expected.
"""

import contextlib
import os
import re
import resource
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from norton_det.commands.parser import run
from norton_det.utils.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
MEMORY = 4 << 30  # bytes
SECONDS = 60
OUT, ERR = "stdout.txt", "stderr.txt"


@dataclass(frozen=True)
class Fault:
    """One way in which things go wrong.

    Attributes:
        group: checkpoint, decomposition, training, data or demo.
        name: what is wrong, a short phrase.
        provoke: called in a process of its own with an empty folder, as the ``main`` of a tool: an ``InputError`` is
            one line and exit status 2.
        expects: regular expression that has to be found in what is printed to stderr, or to stdout where all is well.
        status: of exit.
    """

    group: str
    name: str
    provoke: Callable[[Path], int | None]
    expects: str
    status: int = 2


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
        fault: which.
        problem: why it failed; empty where the promise is kept.
        line: what the user gets.
        seconds: that it took.
    """

    fault: Fault
    problem: str
    line: str
    seconds: float


@dataclass(frozen=True)
class Row:
    """One promise in the printed table: how often it was tried and how often kept, and what else is worth knowing."""

    promise: str
    kept: int
    tried: int
    detail: str = ""


def tool(command: str, *arguments: object) -> NoReturn:
    """``python command arguments`` in this process; it exits with the tool's status."""
    sys.argv = [command, *map(str, arguments)]
    sys.path.insert(0, str(REPOSITORY / "tools"))  # as Python does for a script
    runpy.run_path(str(REPOSITORY / command), run_name="__main__")
    sys.exit(0)


def refused(call: Callable[[], object], expects: str = "") -> str:
    """The one line of an ``InputError`` that ``call`` has to raise, matched by the regular expression ``expects``."""
    try:
        found = call()
    except InputError as error:
        line = str(error)
        assert re.search(expects, line), f"expected {expects!r} in: {line}"
        assert ";" in line or ":" in line, f"no mend: {line}"
        return line
    raise AssertionError(f"accepted: {found!r:.200}")


def run_faults(faults: Sequence[Fault], workers: int = 0) -> Iterator[Verdict]:
    """Run cases, as many at a time as there are cores; verdicts come as they are ready.

    The processes are forks of this one, so that what it has imported need not be imported again.
    """
    torch.set_num_threads(1)  # before any fork: threads do not survive it
    waiting, running = list(faults), {}
    with tempfile.TemporaryDirectory(prefix="norton_det_faults_") as folder:
        while waiting or running:
            while waiting and len(running) < (workers or os.cpu_count() or 1):
                fault = waiting.pop(0)
                own = Path(tempfile.mkdtemp(dir=folder))
                sys.stdout.flush(), sys.stderr.flush()
                pid = os.fork()
                if pid == 0:
                    _child(fault, own)
                running[pid] = fault, own, time.monotonic()
            for pid, (fault, own, started) in list(running.items()):
                seconds = time.monotonic() - started
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended or seconds > SECONDS:
                    _kill_group(pid)
                    if not ended:
                        os.waitpid(pid, 0)
                    del running[pid]
                    yield _judge(fault, own, status if ended else None, seconds)
            time.sleep(0.02)


def _child(fault: Fault, own: Path) -> NoReturn:
    """The process of a case; never returns."""
    status = 70
    try:
        os.setsid()
        for stream, name in ((1, OUT), (2, ERR)):
            os.dup2(os.open(own / name, os.O_WRONLY | os.O_CREAT, 0o644), stream)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(SECONDS)
        work = own / "work"
        work.mkdir()
        os.chdir(work)
        try:
            run(lambda: fault.provoke(work))
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
            status = code if isinstance(code, int) else 1 if code else 0
    except BaseException:  # as the interpreter would
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _judge(fault: Fault, own: Path, status: int | None, seconds: float) -> Verdict:
    out, err = ((own / name).read_text(errors="replace") if (own / name).exists() else "" for name in (OUT, ERR))
    told = [line for line in err.splitlines() if re.match(r"(error|interrupted)\b", line)]
    text = err if fault.status else out + err
    match = re.search(fault.expects, text)
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code is None or code == -signal.SIGALRM:
        problem = f"took longer than {SECONDS} s"
    elif code < 0:
        problem = f"killed by {signal.Signals(-code).name}"
    elif "Traceback (most recent call last)" in err:
        problem = "traceback: " + err.strip().splitlines()[-1][:200]
    elif code != fault.status:
        problem = f"exit status {code}, expected {fault.status}: " + " ".join(text.split())[-200:]
    elif not match:
        problem = f"expected {fault.expects!r}, got: " + " ".join(text.split())[-300:]
    elif fault.status == 2 and len(told) != 1:
        problem = f"expected one line, got {len(told)}"
    else:
        problem = ""
    line = next((line for line in told if re.search(fault.expects, line)), match[0] if match else "")
    return Verdict(fault, problem, line.replace(f"{own}/work/", "").replace(str(own), ""), seconds)


def _kill_group(pid: int) -> None:
    """Whatever a case has started and left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)

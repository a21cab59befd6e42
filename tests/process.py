"""A command or a piece of code in a process of its own, forked from one that has imported what takes long."""

import contextlib
import gc
import logging
import os
import re
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 90.0  # seconds that a command may take to end once it is interrupted


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, what it wrote, whether it was still at work when its time was up."""

    status: int
    out: str
    err: str
    working: bool


def run(main: Callable[[], object], folder: Path, seconds: float, memory: int | None = None) -> Ended:
    """Call ``main`` in a fork in a folder, for so many seconds at most; then it gets what Ctrl-C sends.

    It may take so many bytes of memory beside those that this process has.
    """
    out, err = folder / ".out", folder / ".err"
    process = os.fork()
    if process == 0:
        _child(main, folder, out, err, memory)
    status, working = _wait(process, seconds), False
    if status is None:
        working = True
        os.kill(process, signal.SIGINT)
        status = _wait(process, PATIENCE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what it has started, and itself if it does not end
    if status is None:
        os.waitpid(process, 0)
        status = -signal.SIGKILL
    return Ended(status, out.read_text(errors="replace"), err.read_text(errors="replace"), working)


def script(words: list[str]) -> Callable[[], object]:
    """A Python script with its arguments, as ``python FILE ...`` runs it."""

    def main() -> None:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")

    return main


def resident(process: int | str = "self", field: str = "VmRSS") -> int:
    """Bytes in memory of a process, or another field of its status."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _child(main: Callable[[], object], folder: Path, out: Path, err: Path, memory: int | None) -> None:
    status = 1
    try:
        gc.freeze()  # what the process before has left: threads of a decoder, say, that are not here to be waited for
        os.setpgid(0, 0)
        os.chdir(folder)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        logging.root.handlers[:] = [own for own in logging.root.handlers if type(own) is logging.StreamHandler]
        for name in (None, *logging.root.manager.loggerDict):  # theirs are streams of the process before, or pytest's
            for handler in logging.getLogger(name).handlers:
                if type(handler) is logging.StreamHandler:
                    handler.stream = sys.stderr  # the other may be closed
        signal.signal(signal.SIGINT, signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (resident(field="VmData") + memory,) * 2)
        main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:  # as Python itself: a traceback and status 1
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status & 0xFF)


def _wait(process: int, seconds: float) -> int | None:
    """Exit status, negative for a signal; ``None`` when it is still running."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def error_line(text: str) -> str:
    """The one line ``error: ...``, or nothing."""
    found = re.findall(r"^error: .*$", text, re.MULTILINE)
    return found[-1] if found else ""

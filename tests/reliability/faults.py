"""Faults, each provoked in a process of its own: what the user gets is held against what was promised.

A case fails when its process dies by a signal, prints a traceback, takes longer than a minute, wants more than 4 GiB,
or says or returns anything but what is expected.
"""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from norton_det.commands.parser import run
from norton_det.utils.errors import InputError
from tests import REPOSITORY, process

MEMORY = 4 << 30  # bytes
SECONDS = 60


@dataclass(frozen=True)
class Fault:
    """One way in which things go wrong.

    Attributes:
        group: checkpoint, training, data or demo.
        name: what is wrong, a short phrase.
        provoke: called in a process of its own with a folder, as the ``main`` of a tool: an ``InputError`` is
            one line and exit status 2. In the folder are ``trained``, the output of a training that has ended, and
            ``detector.xml``, an exported one.
        expects: regular expression that has to be found in what is printed to stderr, or to stdout where all is well.
        status: of exit.
    """

    group: str
    name: str
    provoke: Callable[[Path], int | None]
    expects: str
    status: int = 2


def tool(command: str, *arguments: object) -> None:
    """``python command arguments`` in this process; it exits with the tool's status."""
    process.script([str(REPOSITORY / command), *map(str, arguments)])()


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


def judge(fault: Fault, folder: Path) -> tuple[str, str]:
    """Provoke it: why it failed (empty where the promise is kept), and the line that the user gets."""
    ended = process.run(lambda: run(lambda: fault.provoke(folder)), folder, SECONDS, MEMORY)
    told = [line for line in ended.err.splitlines() if re.match(r"(error|interrupted)\b", line)]
    text = ended.err if fault.status else ended.out + ended.err
    match = re.search(fault.expects, text)
    if ended.working:
        problem = f"took longer than {SECONDS} s"
    elif ended.status < 0:
        problem = f"killed by {signal.Signals(-ended.status).name}"
    elif "Traceback (most recent call last)" in ended.err:
        problem = "traceback: " + ended.err.strip().splitlines()[-1][:200]
    elif ended.status != fault.status:
        problem = f"exit status {ended.status}, expected {fault.status}: " + " ".join(text.split())[-200:]
    elif not match:
        problem = f"expected {fault.expects!r}, got: " + " ".join(text.split())[-300:]
    elif fault.status == 2 and len(told) != 1:
        problem = f"expected one line, got {len(told)}"
    else:
        problem = ""
    return problem, next((line for line in told if re.search(fault.expects, line)), match[0] if match else "")

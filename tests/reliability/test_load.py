"""The demo under load: its server beside clients that go, stall and send nonsense, and its capture loop on a stream
that fails and comes back; memory, threads and sockets are held against what they were.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests import REPOSITORY
from tests.process import resident

from . import clients
from .promises import Row
from .stream import Stream

GROWTH = 0.05  # share of memory that may be gained
WARM = 0.1  # share of the time before memory is looked at, and of each end of what follows
POOL = min(32, (os.cpu_count() or 1) + 4)  # threads that asyncio makes as they are needed, at most
PAUSE = 3  # seconds in which clients that have gone are let go of
SETTLE = 45  # seconds in which what clients left has to be gone: a silent one is asked twice, 20 s apart


class Server:
    """tools/serve.py in a process of its own."""

    def __init__(self, detector: Path, folder: Path) -> None:
        self.errors = folder / "serve.txt"
        words = ["tools/serve.py", "--port", "0", "--threads", "1", "--weights", str(detector)]
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=self.errors.open("w"), text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("http"):
            raise RuntimeError(f"tools/serve.py: expected an address, got: {self.errors.read_text()[-500:]}")
        self.port = int(line.split()[0].rpartition(":")[2])

    def family(self) -> list[int]:
        """The process and its children."""
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def memory(self) -> int:
        return sum(map(resident, self.family()))

    def held(self) -> dict[str, int]:
        """How many threads and open files."""
        return {
            name: sum(len(list(Path(f"/proc/{pid}/{kind}").iterdir())) for pid in self.family())
            for name, kind in (("threads", "task"), ("files", "fd"))
        }

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Good:
    """A client as the page is one: it asks, waits for its answer, and asks again."""

    def __init__(self, port: int) -> None:
        self.port, self.answers, self.longest, self.failures = port, 0, 0.0, list[str]()

    def run(self, until: Callable[[], bool]) -> None:
        while not until():
            try:
                with clients.visit(self.port) as client:
                    while not until():
                        self.ask(client)
                        time.sleep(0.05)
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                time.sleep(0.2)

    def ask(self, client: Any) -> None:
        number, started = self.answers + 1, time.monotonic()
        client.send(clients.message(number))
        answer = json.loads(client.recv(timeout=60))
        self.longest = max(self.longest, time.monotonic() - started)
        if answer["frame"] != number or "objects" not in answer:
            raise AssertionError(f"expected objects of frame {number}, got {str(answer)[:200]}")
        self.answers = number


class Crowd:
    """The bad clients of one stretch of time, with a good one among them."""

    def __init__(self, server: Server, seconds: float, disconnects: int) -> None:
        self.server, self.end = server, time.monotonic() + seconds
        self.disconnects, self.pause = disconnects, seconds / (disconnects + 1)
        self.good = Good(server.port)
        self.survived, self.tried, self.met, self.problems = 0, list[str](), list[str](), list[str]()
        self.samples: list[int] = []

    def over(self) -> bool:
        return time.monotonic() > self.end

    def run(self) -> None:
        """Everybody at once, until the time is over and every disconnect was tried."""
        going = threading.Event()
        good = threading.Thread(target=self.good.run, args=(going.is_set,))
        rest = [threading.Thread(target=work) for work in (self.leave, self.send_nonsense, self.sample)]
        rest += [threading.Thread(target=self.stall, args=(kind,)) for kind in clients.SLOW]
        for thread in [good, *rest]:
            thread.start()
        for thread in rest:
            thread.join()
        going.set()
        good.join()

    def leave(self) -> None:
        """Disconnects in all ways, one after the other."""
        for _, kind in zip(range(self.disconnects), itertools.cycle(clients.DISCONNECTS), strict=False):
            due = time.monotonic() + self.pause
            if self.attempt(kind.__name__, lambda kind=kind: kind(self.server.port)) and self.still_answers():
                self.survived += 1
            time.sleep(max(0.0, due - time.monotonic()))

    def still_answers(self) -> bool:
        """Whether the good client is answered once more on the connection that it has."""
        before, failed = self.good.answers, len(self.good.failures)
        deadline = time.monotonic() + 30
        while self.good.answers < before + 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.good.answers >= before + 2 and len(self.good.failures) == failed

    def send_nonsense(self) -> None:
        for name, kind in itertools.cycle(clients.MALFORMED.items()):
            if self.over():
                return
            self.meet(name, lambda kind=kind: kind(self.server.port))
            time.sleep(0.1)

    def stall(self, kind: clients.Stalling) -> None:
        """One kind of slow client after the other."""
        while not self.over():
            self.meet(kind.__name__, lambda: kind(self.server.port, self.over))

    def sample(self) -> None:
        while not self.over():
            self.samples.append(self.server.memory())
            time.sleep(0.25)

    def meet(self, name: str, call: Callable[[], None]) -> None:
        self.tried.append(name)
        if self.attempt(name, call):
            self.met.append(name)

    def attempt(self, name: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception:
            self.problems.append(f"{name}: {traceback.format_exc().strip().splitlines()[-1][:200]}")
            return False
        return True


def test_ten_minutes_of_bad_clients(exported, tmp_path, keep):
    seconds, times = 600.0, 100
    stream = Stream(times + 1, seconds / (times + 1))
    watcher = subprocess.Popen(
        [sys.executable, "-m", "tests.reliability.stream", stream.url],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "watch.txt").open("w"),
        text=True,
    )
    server = None
    try:
        server = Server(exported, tmp_path)
        rows = check_server(server, seconds, times)
        output, _ = watcher.communicate(timeout=seconds + 120)
        rows += check_capture(json.loads(output or "{}"), times, (tmp_path / "watch.txt").read_text())
    finally:
        watcher.kill()
        watcher.wait()
        stream.close()
        if server is not None:
            server.stop()
    keep(*rows)


def check_server(server: Server, seconds: float, times: int) -> list[Row]:
    """Rows of the server, which runs all the while."""
    clients.come_together(server.port)
    Crowd(server, WARM * seconds, len(clients.DISCONNECTS)).run()
    time.sleep(PAUSE)
    before = server.held()
    most = before["threads"] + POOL  # half of the disconnects, were each to leave a thread
    least = {"threads": most, "files": before["files"]}
    crowd = Crowd(server, (1 - WARM) * seconds, times)
    crowd.run()
    after = settled(server, least, SETTLE)
    late = Good(server.port)
    with clients.visit(server.port) as client:
        late.ask(client)
    gone = server.process.poll() is not None or not late.answers or after["threads"] < before["threads"]
    left = any(after[name] > least[name] for name in least)
    text = server.errors.read_text()
    trace = text[text.index("Traceback") :][-300:] if "Traceback" in text else ""
    good, problems = crowd.good, "; ".join(crowd.problems[:3])
    return [
        Row("demo server: disconnects survived", crowd.survived, times),
        Row(
            "demo server: slow, malformed and oversize clients answered or closed",
            len(crowd.met),
            len(crowd.tried),
            problems,
        ),
        Row(
            "demo server: a good client answered throughout",
            good.answers,
            good.answers + len(good.failures),
            f"longest wait {good.longest:.2f} s" + "".join(f"; {each}" for each in good.failures[:1]),
        ),
        grown("demo server", crowd.samples),
        Row(
            "demo server: no lost worker, no thread or socket left",
            int(not gone and not left),
            1,
            f"{told(before)} before, {told(after)} after; at most {most} threads",
        ),
        Row("demo server: no traceback", int(not trace), 1, trace),
    ]


def check_capture(seen: dict[str, Any], times: int, errors: str) -> list[Row]:
    """Rows of the capture loop, from what the watcher saw."""
    if not seen:
        return [Row("capture: runs to its end", 0, 1, errors.strip()[-300:])]
    before, after = seen["threads"]
    end, right = seen["ended"], seen["frames"] - seen["wrongs"]
    detail = f"longest pause {seen['longest']:.2f} s" + "".join(f"; {each}" for each in seen["wrong"][:1])
    return [
        Row("capture: failures that it came back from", min(times, seen["reopened"]), times),
        Row("capture: frames whole and in order", right, seen["frames"], detail),
        grown("capture", [value for _, value in seen["memory"]]),
        Row("capture: no thread left", int(after <= before), 1, f"{before} before, {after} after"),
        Row("capture: a source that stays away ends in one line", int("expected frames" in end), 1, end),
    ]


def settled(server: Server, least: dict[str, int], seconds: float) -> dict[str, int]:
    """What the server holds, as soon as it is no more than ``least`` or after so many seconds."""
    deadline = time.monotonic() + seconds
    while any((now := server.held())[name] > least[name] for name in least) and time.monotonic() < deadline:
        time.sleep(0.25)
    return now


def grown(what: str, samples: Sequence[int]) -> Row:
    """Memory at the end against that at the start, medians."""
    share = max(1, int(WARM * len(samples)))
    first, last = statistics.median(samples[:share]), statistics.median(samples[-share:])
    growth = last / first - 1
    detail = f"{first / 2**20:.0f} to {last / 2**20:.0f} MiB, {100 * growth:+.1f} %"
    return Row(f"{what}: memory grows by less than {100 * GROWTH:.0f} %", int(growth < GROWTH), 1, detail)


def told(held: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in held.items())

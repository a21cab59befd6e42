"""Mutated checkpoints: none crashes the reader, passes for the original, runs code, or takes memory beyond its size.

Files of each form are changed at random (bits, bytes, ranges, numbers, lengths; half of the changes in headers and
directories, the description of a checkpoint also by itself) and read. A change that leaves the content as it was, such
as one in the padding of an archive, may be read. Readers are forks of this process; one that dies or hangs is noted.
"""

import hashlib
import json
import logging
import mmap
import os
import pickle
import random
import resource
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from norton_det.checkpoint.digest import content_digest
from norton_det.checkpoint.load import load_weights
from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.save import save_checkpoint
from norton_det.checkpoint.tensor_file import METADATA_KEY
from norton_det.checkpoint.torch_file import save_torch
from norton_det.utils.errors import InputError

from . import LONG
from .promises import Row
from .small import model

CASES, PART = (100_000, 5_000) if LONG else (2_000, 1_000)
HANG = 30  # seconds
SLACK = 24 << 20  # bytes of noise of allocators, beside three times the size of the file
LARGE = 32 << 20  # bytes
EVENTS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")


@dataclass(frozen=True)
class Target:
    """A form of file.

    Attributes:
        name: of the form.
        data: of the original.
        read: gives its content.
        share: of the cases.
        checked: whether it carries a checksum, or has one beside it.
        suffix: of the file.
    """

    name: str
    data: bytes
    read: Callable[[Path], Any]
    share: float
    checked: bool = True
    suffix: str = ".bin"


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR, "norton_det")


@pytest.mark.parametrize("start", range(0, CASES, PART))
def test_mutated_files(start, tmp_path, keep):
    keep(*fuzzed(_targets(tmp_path), range(start, start + PART), tmp_path))


def fuzzed(targets: list[Target], cases: range, folder: Path) -> list[Row]:
    """What became of these cases."""
    found, total = _run(targets, cases, folder), len(cases)
    read = {
        "refused": found["refused"],
        "read as they were": found["unchanged"],
        "without a checksum": found["without"],
        "of them read with a word": found["told"],
    }

    rows = []
    for promise, kinds in (
        ("no crash, no hang", ("crash", "hang")),
        ("no error but one line", ("error",)),
        ("none passes for the original", ("accepted changed",)),
        ("none runs code", ("code",)),
        ("memory within 3x their size", ("memory",)),
    ):
        first = "; ".join(key for key in found if key.startswith(tuple(f"{kind}:" for kind in kinds)))[:300]
        kept = total - sum(found[kind] for kind in kinds)
        rows.append(Row(f"mutated files: {promise}", kept, total, first or ({} if rows else read)))
    return rows


def _targets(folder: Path) -> list[Target]:
    torch.manual_seed(0)
    small = {f"layer{number}.weight": torch.randn(7, 11) for number in range(4)}
    network = model().half()
    norton = save_checkpoint(folder / "norton", network).read_bytes()
    optimizer = {"state": {0: {"momentum_buffer": torch.randn(7)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    trainer = {"model": small, "iteration": 7, "trainer": {"hooks": {"LRScheduler": {}}, "optimizer": optimizer}}
    sealed = save_torch(folder / "trainer", trainer).read_bytes()
    torch.save({"model": small, "epoch": 3}, folder / "torch")
    torch.save({"model": small}, folder / "old", _use_new_zipfile_serialization=False)
    arrays = {name: tensor.numpy() for name, tensor in small.items()}
    pickled = pickle.dumps({"model": arrays, "__author__": "x", "matching_heuristics": True}, 2)
    save_file(network.state_dict(), folder / "plain")
    plain = (folder / "plain").read_bytes()
    old = (folder / "old").read_bytes()
    return [
        Target("norton .safetensors", norton, _read_norton, 0.25),
        Target("description of a norton .safetensors", norton, _read_norton, 0.15),
        Target("trainer's .pth", sealed, _read_content, 0.2),
        Target("torch .pth", (folder / "torch").read_bytes(), _read_content, 0.1),
        Target("old torch .pth with .sha256", old, _read_content, 0.05),
        Target(".pkl with .sha256", pickled, _read_content, 0.05, suffix=".pkl"),
        Target("old torch .pth", old, _read_content, 0.05, checked=False),
        Target(".pkl", pickled, _read_content, 0.1, checked=False, suffix=".pkl"),
        Target("plain .safetensors", plain, _read_weights, 0.05, checked=False),
    ]


def _large(folder: Path) -> list[Target]:
    state = {"model": {"a": torch.zeros(LARGE // 8), "b": torch.ones(LARGE // 8)}}
    save_file(state["model"], folder / "large")
    arrays = {"model": {name: tensor.numpy() for name, tensor in state["model"].items()}}
    return [
        Target("large .safetensors", (folder / "large").read_bytes(), _read_norton, 0.4, checked=False),
        Target("large .pth", save_torch(folder / "large", state).read_bytes(), _read_content, 0.3),
        Target("large .pkl", pickle.dumps(arrays, 4), _read_content, 0.3, checked=False, suffix=".pkl"),
    ]


def _read_norton(path: Path) -> Any:
    opened = open_weights(path)
    info = opened.described
    return {"info": None if info is None else info.to_fields(), "tensors": opened.state}


def _read_content(path: Path) -> Any:
    opened = open_weights(path)
    return opened.fields | {"model": opened.state}


def _read_weights(path: Path) -> Any:
    return load_weights(path).state


def _mutate(data: bytes, chance: random.Random) -> bytes:
    """One to four changes; half of them in the first and last kilobytes."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        size = len(found)
        if size < 16:
            break
        edge = min(size, 4096)
        place = chance.choice(
            (chance.randrange(edge), size - 1 - chance.randrange(edge), chance.randrange(size), chance.randrange(size))
        )
        end = min(size, place + chance.choice((1, 2, 4, 8, 64, 1024)))
        kind = chance.randrange(9)
        if kind <= 1:
            found[place] ^= 1 << chance.randrange(8)
        elif kind == 2:
            found[place] = chance.randrange(256)
        elif kind == 3:
            del found[place:end]
        elif kind == 4:
            found[place:place] = chance.randbytes(end - place)
        elif kind == 5:
            found[place:end] = bytes(end - place)
        elif kind == 6:
            found[place:place] = found[place:end]
        elif kind == 7:
            number = chance.choice((0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1))
            form = chance.choice(("<B", "<H", "<I", "<Q"))
            found[place : place + struct.calcsize(form)] = struct.pack(form, number % 256 ** struct.calcsize(form))
        else:
            del found[place:]
    return bytes(found)


def _mutate_description(data: bytes, chance: random.Random) -> bytes:
    """The description alone is changed, or a field of it; the header stays one that safetensors accepts."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    text = header["__metadata__"][METADATA_KEY]
    if chance.random() < 0.5:
        fields = json.loads(text)
        name = chance.choice(list(fields))
        junk = (
            None,
            0,
            -1,
            1,
            2,
            2**70,
            1e308,
            True,
            "",
            "x",
            [],
            {},
            [[]],
            {"a": 1},
            fields[chance.choice(list(fields))],
        )
        fields[name if chance.random() < 0.8 else f"{name}x"] = chance.choice(junk)
        if chance.random() < 0.2:
            fields.pop(name, None)
        text = json.dumps(fields)
    else:
        text = _mutate(text.encode(), chance).decode("utf-8", "replace")
    header["__metadata__"][METADATA_KEY] = text
    made = json.dumps(header).encode()
    return struct.pack("<Q", len(made)) + made + data[8 + length :]


def _run(targets: list[Target], cases: range, folder: Path) -> Counter[str]:
    """All cases, in a process of its own that is followed by another one if it dies; counts by what became of them."""
    found: Counter[str] = Counter()
    expected = []
    for target in targets:
        file = folder / f"original{target.suffix}"
        file.write_bytes(target.data)
        expected.append(content_digest(target.read(file)))
        file.unlink()
    position, first = mmap.mmap(-1, 8), cases.start
    while first < cases.stop:
        log = folder / f"log_{first}"
        struct.pack_into("<q", position, 0, first)
        pid = os.fork()
        if pid == 0:
            _worker(targets, expected, range(first, cases.stop), position, folder, log)
        number, since, ended, status = first, time.monotonic(), 0, 0
        while not ended and time.monotonic() - since < HANG:
            time.sleep(0.05)
            now = struct.unpack_from("<q", position)[0]
            if now != number:
                number, since = now, time.monotonic()
            ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for line in log.read_text().splitlines():
            found.update([line, line.partition(":")[0]] if ":" in line else [line])
        if ended and not status:
            break
        kind = "crash" if ended else "hang"
        found.update([kind, f"{kind}: case {number}"])
        first = number + 1
    return found


def _worker(
    targets: list[Target],
    expected: list[str],
    numbers: range,
    position: mmap.mmap,
    folder: Path,
    log: Path,
) -> None:
    """In a process of its own: never returns."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ran: list[str] = []
    out = log.open("w", buffering=1)
    sys.addaudithook(lambda event, _: ran.append(event) if event in EVENTS else None)
    ends = np.cumsum([target.share for target in targets])
    for number in numbers:
        struct.pack_into("<q", position, 0, number)
        chance = random.Random(number)
        index = min(int(np.searchsorted(ends, chance.random() * ends[-1], side="right")), len(targets) - 1)
        target = targets[index]
        mutate = _mutate_description if target.name.startswith("description") else _mutate
        data = mutate(target.data, chance)
        file = folder / f"case{target.suffix}"
        file.write_bytes(data)
        beside = folder / f"{file.name}.sha256"
        beside.unlink(missing_ok=True)
        if target.name.endswith(".sha256"):
            beside.write_text(f"{hashlib.sha256(target.data).hexdigest()}  {file.name}\n")
        verdict, grown = _read(target, file, expected[index], data)
        lines = [verdict]
        if not target.checked:
            lines.append("without")
        if ran:
            lines.append(f"code: case {number}, {target.name}: {ran[0]}")
            ran.clear()
        if grown > 3 * len(data) + SLACK:
            lines.append(f"memory: case {number}, {target.name}: {grown >> 20} MB for {len(data) >> 20} MB")
        if verdict.startswith(("error", "accepted")):
            lines[0] = f"{verdict.partition(':')[0]}: case {number}, {target.name}{verdict.partition(':')[2]}"
        out.write("".join(f"{line}\n" for line in lines))
    os._exit(0)


def _read(target: Target, file: Path, expected: str, data: bytes) -> tuple[str, int]:
    """What became of a file, and by how many bytes the process grew at most."""
    before = _peak(reset=True)
    try:
        content = target.read(file)
        grown = _peak() - before
        same = content_digest(content) == expected
    except InputError as error:
        return ("error: more than one line" if "\n" in str(error) else "refused"), _peak() - before
    except BaseException as error:
        return f"error: {type(error).__name__}: {str(error)[:80]!r}", _peak() - before
    if same or data == target.data:
        return "unchanged", grown
    return ("accepted changed" if target.checked else "told"), grown


def _peak(reset: bool = False) -> int:
    """Most resident bytes of this process since they were reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


if LONG:

    def test_large_mutated_files(tmp_path, keep):
        keep(*fuzzed(_large(tmp_path), range(CASES // 1000), tmp_path))

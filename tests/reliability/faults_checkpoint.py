"""Faults of files of weights: damaged, of another kind, of another network."""

import logging
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from norton_det.checkpoint.load import load_weights
from norton_det.checkpoint.save import save_checkpoint
from norton_det.checkpoint.tensor_file import read_safetensors, write_tensors
from norton_det.checkpoint.torch_file import read_torch, save_torch
from norton_det.d2.files import newest_checkpoint

from .faults import Fault, refused, tool
from .small import CONFIG, SPEC, model, words

OFFSETS = 64


def _each_form(folder: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """A good file of each form that carries a checksum, and its reader."""
    small = {f"layer{number}.weight": torch.randn(200, 200) for number in range(4)}
    torch.save({"model": small}, folder / "torch.pth")
    return {
        "norton": (save_checkpoint(folder / "norton.safetensors", model()), load_weights),
        "trainer": (save_torch(folder / "trainer.pth", {"model": small, "iteration": 3}), read_torch),
        "torch": (folder / "torch.pth", read_torch),
    }


def truncated(folder: Path) -> None:
    forms = _each_form(folder)
    arrays = {"conv1_w": np.zeros((64, 3, 7, 7), np.float32)}
    (folder / "zoo.pkl").write_bytes(pickle.dumps({"blobs": arrays}, 2))
    forms["zoo"] = folder / "zoo.pkl", load_weights
    for file, read in forms.values():
        data = file.read_bytes()
        for number in range(OFFSETS):
            file.write_bytes(data[: number * len(data) // OFFSETS])
            refused(lambda read=read, file=file: read(file), "truncated|damaged|empty|text|unknown format")
    print(f"{len(forms) * OFFSETS} refused")


def bit_rot(folder: Path) -> None:
    chance = random.Random(0)
    for file, read in _each_form(folder).values():
        data = file.read_bytes()
        start = len(data) // 3  # of a stretch that no header or padding looks like
        while len(set(data[start : start + 2048])) < 200:
            start += 512
        for _ in range(OFFSETS):
            place = start + chance.randrange(2048)
            file.write_bytes(data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :])
            refused(lambda read=read, file=file: read(file), "get (it|the file) again")
    print(f"{3 * OFFSETS} refused")


def bit_rot_of_others(folder: Path) -> None:
    """Files that carry no checksum, with one beside them."""
    import hashlib

    file = folder / "zoo.pkl"
    data = pickle.dumps({"blobs": {"conv1_w": np.ones((64, 3, 7, 7), np.float32)}}, 2)
    (folder / "zoo.pkl.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  zoo.pkl\n")
    file.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    _compress(file)


def _compress(file: Path) -> None:
    tool("tools/compress.py", "--weights", file, "--output", "out.safetensors")


def _content(data: bytes, name: str = "w.pth") -> Callable[[Path], None]:
    def provoke(folder: Path) -> None:
        (folder / name).write_bytes(data)
        _compress(folder / name)

    return provoke


def _saved(content: Callable[[], Any], name: str = "w.pth", **options: Any) -> Callable[[Path], None]:
    def provoke(folder: Path) -> None:
        torch.save(content(), folder / name, **options)
        _compress(folder / name)

    return provoke


def _changed(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """A state dict with some tensors changed; a name's dots are two underscores."""

    def content() -> dict[str, torch.Tensor]:
        state = model().state_dict()
        for name, change in changes.items():
            state[name.replace("__", ".")] = change(state[name.replace("__", ".")])
        return state

    return _saved(content)


def zip_bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}.")
        with archive.open("w/data/0", "w") as member:
            for _ in range(200):
                member.write(bytes(1 << 20))
    _compress(folder / "w.pth")


def _described(**changes: Any) -> Callable[[Path], None]:
    """A norton checkpoint with another description and the digest that goes with it."""

    def provoke(folder: Path) -> None:
        file = save_checkpoint(folder / "w.safetensors", model())
        info, tensors = read_safetensors(file)
        assert info is not None
        write_tensors(file, tensors, info | changes)
        tool("tools/finetune.py", "--weights", file, "--data", folder, "--output", folder / "out")

    return provoke


def _keys(change: Callable[[dict[str, torch.Tensor]], None], *flags: str) -> Callable[[Path], None]:
    """A trained detector with other keys, as the start of a training."""

    def provoke(folder: Path) -> None:
        file = folder / "start.pth"
        content = read_torch(folder / "trained" / "model_final.pth")
        change(content["model"])
        save_torch(file, content)
        training = ["MODEL.WEIGHTS", file, "SOLVER.MAX_ITER", 1]
        tool("tools/train_net.py", "--config", CONFIG, *flags, *words(folder / "out"), *training)

    return provoke


def other_rank(folder: Path) -> None:
    """The optimizer's state is of another network."""
    out = folder / "out"
    shutil.copytree(folder / "trained", out)
    content = read_torch(out / "model_final.pth")
    for state in content["trainer"]["_trainer"]["optimizer"]["state"].values():
        if state.get("momentum_buffer") is not None and state["momentum_buffer"].ndim == 4:
            state["momentum_buffer"] = state["momentum_buffer"].repeat(2, 1, 1, 1)
    save_torch(out / "model_final.pth", content)
    tool("tools/train_net.py", "--config", CONFIG, "--resume", *words(out, SOLVER__MAX_ITER=6))


def newest_damaged(folder: Path) -> None:
    out = folder / "out"
    shutil.copytree(folder / "trained", out)
    last = out / "model_final.pth"
    data = last.read_bytes()
    last.write_bytes(data[: len(data) // 2])
    found = newest_checkpoint(out)
    assert found.endswith("model_0000002.pth"), found
    for handler in logging.getLogger("norton_det").handlers:
        handler.flush()


def all_damaged(folder: Path) -> None:
    out = folder / "out"
    shutil.copytree(folder / "trained", out)
    for file in out.glob("model_*.pth"):
        file.write_bytes(b"PK\x03\x04" + bytes(1000))
    tool("tools/train_net.py", "--config", CONFIG, "--resume", *words(out, SOLVER__MAX_ITER=6))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102540417\n"
NAME = "roi_heads.box_head.fc1.weight"


def _rename(state: dict[str, torch.Tensor]) -> None:
    state["roi_heads.box_head.fc1.weigth"] = state.pop(NAME)


_CASES: list[tuple[str, Callable[[Path], Any], str, int]] = [
    ("truncated at 64 offsets", truncated, "256 refused", 0),
    ("bit rot at 64 places", bit_rot, "192 refused", 0),
    (
        "bit rot of a file with FILE.sha256",
        bit_rot_of_others,
        r"zoo\.pkl: sha256: expected .*get the file again",
        2,
    ),
    ("zeros", _content(bytes(5000)), r"w\.pth: expected weights .*; download the file again", 2),
    ("a web page", _content(b"<!DOCTYPE html><title>404</title>"), r"got text that starts b'<!DOCTYPE", 2),
    ("a Git LFS pointer", _content(LFS, "w.safetensors"), r"got text that starts b'version https", 2),
    ("a zip bomb", zip_bomb, r"w\.pth: expected tensors .*got an archive that grows absurdly; get", 2),
    (
        "a tensor of stride 0 that claims 4 TB",
        _changed(fc__weight=lambda t: torch.zeros(1).expand(1 << 20, 1 << 20)[:2, :2048]),
        r"fc\.weight: expected 4096 stored values, got fewer; get the file again",
        2,
    ),
    (
        "rank of another network",
        _described(spec=SPEC.to_dict() | {"rank": 2}),
        r"expected shape .*; the rank or",
        2,
    ),
    (
        "ratios of another network",
        _described(spec=SPEC.to_dict() | {"ratios": [0.0] * 20}),
        r"conv1\.weight: expected shape .*; the rank or ratios are of another network",
        2,
    ),
    (
        "ratios that make no sense",
        _described(spec=SPEC.to_dict() | {"ratios": [2.0] * 20}),
        r"ratios\[0\]: .*; ch",
        2,
    ),
    ("a newer version", _described(version=99), r"metadata: version: expected 1 to \d, got 99; update", 2),
    ("NaN", _changed(fc__weight=lambda t: t * float("nan")), r"fc\.weight: expected finite values, got .*; use", 2),
    ("infinite", _changed(conv1__weight=lambda t: t / 0), r"conv1\.weight: expected finite values, got .*; use", 2),
    (
        "integer tensors",
        _changed(conv1__weight=lambda t: t.to(torch.int8)),
        r"conv1\.weight: expected float.*; save",
        2,
    ),
    (
        "complex tensors",
        _changed(conv1__weight=lambda t: t + 0j),
        r"conv1\.weight: expected a dense tensor .*; save",
        2,
    ),
    ("not a dict", _saved(lambda: [torch.zeros(3)]), r"w\.pth: expected a state dict, got list; save", 2),
    (
        "escape codes in names",
        _saved(lambda: model().state_dict() | {"\x1b[2J\x1b]0;x\x07evil": torch.zeros(1)}),
        r"first: \\x1b\[2J\\x1b\]0;x\\x07evil\); use",
        2,
    ),
    (
        "a missing key",
        _keys(lambda state: state.__delitem__(NAME)),
        rf"missing \(first: {NAME}\); use .*--partial",
        2,
    ),
    (
        "an extra key",
        _keys(lambda s: s.update({"x.weight": s[NAME]})),
        r"not of this detector \(first: x\.weight\); u",
        2,
    ),
    ("a renamed key", _keys(_rename), rf"missing \(first: {NAME}\); use .*--partial", 2),
    ("a renamed key, with --partial", _keys(_rename, "--partial"), r"fc1\.weight", 0),
    ("optimizer of another rank", other_rank, r"optimizer: expected .* of another network", 2),
    ("the newest checkpoint is damaged", newest_damaged, r"Passed over: .*model_final\.pth.*damaged", 0),
    (
        "all checkpoints are damaged",
        all_damaged,
        r"expected a whole checkpoint to resume, got 4 .*; remove them",
        2,
    ),
]
FAULTS = [Fault("checkpoint", *case) for case in _CASES]

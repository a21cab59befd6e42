"""Files and settings that try to run a command when a detector is loaded; none may.

Each payload would make a mark (an empty file). That the payload works at all is tried too where the plain loader of
torch, pickle or YAML runs it: a payload that nobody would run proves nothing.
"""

import io
import os
import pickle
import pickletools
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from norton_det.checkpoint.load import load_weights
from norton_det.checkpoint.safe_pickle import read_arrays
from norton_det.checkpoint.torch_file import read_torch
from norton_det.d2.build import load_config
from norton_det.utils.errors import InputError

from .promises import Row

UNSAFE = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


class Runs:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


def test_no_code_is_run(tmp_path, keep):
    keep(*read_all(tmp_path))


def read_all(folder: Path) -> list[Row]:
    """What became of each payload."""
    mark = folder / "mark"
    command = f"touch {mark}"
    ran, accepted, dud = [], [], []
    payloads = list(_files(folder, mark, command))
    for name, file, read, plain in payloads:
        with _environment(UNSAFE if "variable" in name else {}):
            try:
                read(file)
                accepted.append(name)
            except InputError as error:
                if "\n" in str(error) or "weights_only" in str(error):
                    accepted.append(f"{name}: {error}")
            if mark.exists():
                ran.append(name)
                mark.unlink()
            with suppress(Exception):
                plain(file)
            if not mark.exists():
                dud.append(name)
            mark.unlink(missing_ok=True)
    count = len(payloads)
    detail = f"a plain loader runs {count - len(dud)} of them"
    return [
        Row("code in files and settings: none is run", count - len(ran), count, "; ".join(ran) or detail),
        Row("each of them is refused in one line", count - len(accepted), count, "; ".join(accepted)[:300]),
    ]


def _files(folder: Path, mark: Path, command: str) -> Iterator[tuple[str, Path, Any, Any]]:
    """Name, file, our reader, and a plain loader that would run it."""
    tensors = {"conv1.weight": torch.zeros(64, 3, 7, 7)}

    def torch_file(name: str, content: Any, **options: Any) -> Path:
        torch.save(content, folder / name, **options)
        return folder / name

    def written(name: str, data: bytes | str) -> Path:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
        return folder / name

    def unsafe_torch(file: Path) -> Any:
        return torch.load(file, weights_only=False)

    def by_variable(file: Path) -> Any:
        return torch.load(file)

    def unpickle(file: Path) -> Any:
        return pickle.loads(file.read_bytes())

    system, evaluate = Runs(os.system, command), Runs(eval, f"__import__('os').system({command!r})")
    yield "os.system in a .pth", torch_file("a.pth", {"model": tensors, "x": system}), load_weights, unsafe_torch
    yield "eval in a .pth", torch_file("b.pth", {"model": tensors, "x": evaluate}), read_torch, unsafe_torch
    legacy = {"_use_new_zipfile_serialization": False}
    yield "a .pth of the old form", torch_file("c.pth", {"x": system}, **legacy), load_weights, unsafe_torch
    yield "an environment variable and a .pth", torch_file("d.pth", {"x": system}), read_torch, by_variable
    yield "an environment variable, old form", torch_file("e.pth", {"x": system}, **legacy), load_weights, by_variable
    run = Runs(subprocess.check_call, ["touch", str(mark)])
    yield "subprocess in a .pth", torch_file("f.pth", {"trainer": {"hooks": run}}), read_torch, unsafe_torch
    arrays = {"conv1_w": np.zeros((64, 3, 7, 7), np.float32)}
    for letter, protocol in zip("ghijk", (0, 1, 2, 4, 5), strict=True):
        data = pickle.dumps({"model": arrays, "__author__": system}, protocol)
        yield f"os.system in a .pkl of protocol {protocol}", written(f"{letter}.pkl", data), load_weights, unpickle
    named = f"cos\nsystem\n(S'{command}'\ntR."
    yield "a bare REDUCE, named .pth", written("l.pth", named), load_weights, unpickle
    yield "a bare REDUCE, named .pkl", written("l.pkl", named), read_arrays, unpickle
    setter = (
        f"ccollections\nOrderedDict\n(tR}}S'x'\ncbuiltins\neval\n(S'__import__(\"os\").system(\"{command}\")'\ntRsb."
    )
    yield "BUILD of the state of an allowed class", written("m.pkl", setter), read_arrays, unpickle
    getter = f"cnumpy\ndtype.__class__.__base__\n(S'x'\ntR0cos\nsystem\n(S'{command}'\ntR."
    yield "a dotted name below an allowed one", written("n.pkl", getter), read_arrays, unpickle
    stack = pickletools.optimize(pickle.dumps({"blobs": arrays, "x": [[[evaluate]]]}, 4))
    yield "eval deep in lists", written("o.pkl", stack), load_weights, unpickle
    proposals = written("w.pkl", pickle.dumps({"boxes": system}))
    yield "a file of proposals", proposals, lambda _: _config_with_proposals(folder), unpickle
    yield "two data.pkl in one archive", _twice(folder, system), load_weights, unsafe_torch
    for letter, tag in (
        ("p", f"!!python/object/apply:os.system ['{command}']"),
        ("q", f"!!python/object/new:os.system ['{command}']"),
        ("r", f"!!python/object/apply:eval [\"__import__('os').system('{command}')\"]"),
    ):
        text = f"MODEL:\n  WEIGHTS: {tag}\n"
        yield f"{tag.split(' ')[0]} in a config", written(f"{letter}.yaml", text), _config, _unsafe_yaml
    shutil.copy(written("s.yaml", f"X: !!python/object/apply:os.system ['{command}']\n"), folder / "base.yaml")
    yield "a YAML tag in a base of a config", written("t.yaml", "_BASE_: base.yaml\n"), _config, _detectron2_config


def _twice(folder: Path, system: Runs) -> Path:
    """The harmless one is in front; readers that take the last one meet the other."""
    inside = io.BytesIO()
    pickle.dump({"x": system}, inside, 2)
    torch.save({"x": 1}, folder / "u.pth")
    with zipfile.ZipFile(folder / "u.pth") as old, zipfile.ZipFile(folder / "v.pth", "w") as new:
        name = next(member for member in old.namelist() if member.endswith("data.pkl"))
        for member in old.namelist():
            new.writestr(member, old.read(member))
        new.writestr(name, inside.getvalue())
    return folder / "v.pth"


def _config(file: Path) -> Any:
    return load_config(str(file))


def _config_with_proposals(folder: Path) -> Any:
    (folder / "proposals.yaml").write_text("MODEL:\n  LOAD_PROPOSALS: True\n")
    return load_config(str(folder / "proposals.yaml"))


def _unsafe_yaml(file: Path) -> Any:
    return yaml.unsafe_load(file.read_text())


def _detectron2_config(file: Path) -> Any:
    from detectron2.config import get_cfg

    get_cfg().merge_from_file(str(file), allow_unsafe=True)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})

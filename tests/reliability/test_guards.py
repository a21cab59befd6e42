"""Each guard is taken away once, and the check it is there for has to fail: one that cannot fail proves nothing.

The guard is replaced in a fork of this process, and its case or check runs there.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from norton_det.checkpoint import load as weights
from norton_det.checkpoint import opened, tensor_file, torch_file
from norton_det.classification import epochs
from norton_det.d2 import build as engine
from norton_det.d2 import checkpoint, hooks, launch, loader, trainer
from norton_det.data import coco_checks
from norton_det.utils import errors, files
from tests import process

from . import LONG, test_fuzz, test_kills, test_payloads, test_resume
from .faults import judge
from .promises import Row
from .test_faults import FAULTS

Check = str | Callable[[Path], list[Row]]  # the name of a fault, or a check
Change = tuple[Any, str, Any]  # where a guard is, its name there, and what stands in its place
torch_load = torch.load
merge_from_file = engine.CfgNode.merge_from_file


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a function that refuses."""


def _no_problem(*_: Any, **__: Any) -> str:
    """In place of a function that says what is wrong."""
    return ""


def _fuzzed(folder: Path) -> list[Row]:
    return test_fuzz.fuzzed(test_fuzz._targets(folder), range(2_000), folder)


def _killed(folder: Path) -> list[Row]:
    rows = []
    for number in range(24):
        (folder / str(number)).mkdir()
        rows.append(test_kills.killed(number, folder / str(number)))
    return rows


def _resumed(folder: Path) -> list[Row]:
    rows = []
    for kind, cut in (("detector", 2), ("classifier", 2), ("classifier", 4)):
        inside = [folder / f"{kind}_{cut}_{name}" for name in ("whole", "cut")]
        for place in inside:
            place.mkdir()
        expected = test_resume.uninterrupted(kind, 0, inside[0])
        rows.append(test_resume.resumed(kind, 0, cut, expected, inside[1]))
    return rows


def _unsafe_load(*arguments: Any, **options: Any) -> Any:
    return torch_load(*arguments, **options | {"weights_only": False})


def _unsafe_merge(cfg: Any, name: str, **_: Any) -> Any:
    return merge_from_file(cfg, name, allow_unsafe=True)


def _by_tag(folder: Any) -> str:
    """Detectron2's rule for the last checkpoint."""
    tag = Path(folder) / "last_checkpoint"
    return str(Path(folder) / tag.read_text().strip()) if tag.is_file() else ""


def _deaf(_: Any, number: int, __: Any) -> None:
    os._exit(128 + number)


def _as_it_is(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.real.float()


def _unguarded(train: Callable[[], Any], _: Any) -> Any:
    return train()


def _unseeded(*_: int) -> Any:
    return nullcontext()


def _unwatched(_: Any) -> Any:
    return nullcontext([])


GUARDS: list[tuple[str, Change, Check]] = [
    ("digest of a checkpoint", (tensor_file, "check_digest", _nothing), "bit rot at 64 places"),
    ("the same, fuzzed", (tensor_file, "check_digest", _nothing), _fuzzed),
    ("checksums in an archive", (torch_file, "_check_archive", _nothing), "bit rot at 64 places"),
    ("form of an archive", (torch_file, "_check_archive", _nothing), "a zip bomb"),
    ("FILE.sha256", (opened, "check_beside", _nothing), "bit rot of a file with FILE.sha256"),
    ("weights_only", (torch, "load", _unsafe_load), test_payloads.read_all),
    ("YAML without tags", (engine.CfgNode, "merge_from_file", _unsafe_merge), test_payloads.read_all),
    ("renaming over the target", (torch_file, "atomic_path", nullcontext), _killed),
    ("the newest whole checkpoint", (test_kills, "newest_checkpoint", _by_tag), _killed),
    ("removing what is left", (files, "_remove_left", _nothing), _killed),
    ("finite values", (weights, "_to_float32", _as_it_is), "NaN"),
    ("kinds of numbers", (weights, "_to_float32", _as_it_is), "integer tensors"),
    ("visible text", (errors, "_visible", str), "escape codes in names"),
    ("all tensors fit", (checkpoint.NortonCheckpointer, "_refuse_misfits", _nothing), "a renamed key"),
    ("shapes of the optimizer", (trainer, "check_optimizer", _nothing), "optimizer of another rank"),
    ("hearing signals", (hooks.StopOnSignal, "_hear", _deaf), "SIGTERM"),
    ("seeds of images and order", (epochs, "seeded", _unseeded), _resumed),
    ("finite losses", (trainer, "guarded", _unguarded), "a loss that is not finite"),
    ("one training in a folder", (filelock.FileLock, "acquire", _nothing), "two trainings in one folder"),
    ("signs of life", (launch, "_watching", _unwatched), "one of two processes hangs"),
    ("images that cannot be read", (loader, "UNREADABLE", ()), "a truncated picture of 120"),
    ("too many of them", (epochs, "MOST_UNREADABLE", 1.0), "one truncated picture of nine"),
    ("values of boxes", (coco_checks, "box_problem", _no_problem), "a box that is NaN"),
    ("values of masks", (coco_checks, "mask_problem", _no_problem), "a polygon of 1e9 pixels"),
    ("ids that differ", (coco_checks, "_check_ids", _nothing), "an annotation twice"),
    ("paths of images", (coco_checks, "_image_problem", _no_problem), "a path out of the folder"),
]


@pytest.mark.parametrize(("name", "change", "check"), GUARDS, ids=[name for name, _, _ in GUARDS])
def test_guard_and_its_check_are_there(name, change, check):
    assert callable(getattr(change[0], change[1])) or change[2] is not None
    assert callable(check) or check in {fault.name for fault in FAULTS}


if LONG:

    @pytest.mark.promise("with a guard taken away its check fails")
    @pytest.mark.parametrize(("name", "change", "check"), GUARDS, ids=[name for name, _, _ in GUARDS])
    def test_without_it_its_check_fails(name, change, check, place, tmp_path):
        fault = next((fault for fault in FAULTS if fault.name == check), None)
        folder = tmp_path if fault is None else place(fault)

        def without() -> None:
            setattr(*change)
            inside = folder / "inside"
            inside.mkdir()
            if fault is not None:
                for start in folder.glob("trained"):
                    (inside / start.name).symlink_to(start.resolve())
                broken = bool(judge(fault, inside)[0])
            else:
                broken = any(row.kept != row.tried for row in check(inside))
            print("it fails" if broken else "it passes")

        ended = process.run(without, tmp_path, 900)
        # or it does not even end well
        assert ended.status != 0 or "it fails" in ended.out, f"{name}: its check passes without it"

"""Each guard is taken away once, and the check it is there for has to fail: one that cannot fail proves nothing.

The guard is replaced in a fork of this process, and its case or check runs there.
"""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import filelock
import torch

from norton_det.checkpoint import load as weights
from norton_det.checkpoint import opened, tensor_file, torch_file
from norton_det.classification import epochs
from norton_det.d2 import build as engine
from norton_det.d2 import checkpoint, hooks, launch, loader, trainer
from norton_det.data import coco_checks
from norton_det.utils import errors, files

from . import fuzz, kills, payloads, resume
from .cases import Fault, Row, run_faults

Check = str | Callable[[bool, Path], list[Row]]  # the name of a fault, or a check
torch_load = torch.load
merge_from_file = engine.CfgNode.merge_from_file


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a function that refuses."""


def _no_problem(*_: Any, **__: Any) -> str:
    """In place of a function that says what is wrong."""
    return ""


def _without(*changes: tuple[Any, str, Any]) -> Callable[[], None]:
    def change() -> None:
        for place, name, value in changes:
            assert hasattr(place, name), name
            setattr(place, name, value)

    return change


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


GUARDS: list[tuple[str, Callable[[], None], Check]] = [
    ("digest of a checkpoint", _without((tensor_file, "check_digest", _nothing)), "bit rot at 64 places"),
    ("the same, fuzzed", _without((tensor_file, "check_digest", _nothing)), fuzz.check),
    ("checksums in an archive", _without((torch_file, "_check_archive", _nothing)), "bit rot at 64 places"),
    ("form of an archive", _without((torch_file, "_check_archive", _nothing)), "a zip bomb"),
    ("FILE.sha256", _without((opened, "check_beside", _nothing)), "bit rot of a file with FILE.sha256"),
    ("weights_only", _without((torch, "load", _unsafe_load)), payloads.check),
    ("YAML without tags", _without((engine.CfgNode, "merge_from_file", _unsafe_merge)), payloads.check),
    ("renaming over the target", _without((torch_file, "atomic_path", nullcontext)), kills.check),
    ("the newest whole checkpoint", _without((kills, "newest_checkpoint", _by_tag)), kills.check),
    ("removing what is left", _without((files, "_remove_left", _nothing)), kills.check),
    ("finite values", _without((weights, "_to_float32", _as_it_is)), "NaN"),
    ("kinds of numbers", _without((weights, "_to_float32", _as_it_is)), "integer tensors"),
    ("visible text", _without((errors, "_visible", str)), "escape codes in names"),
    ("all tensors fit", _without((checkpoint.NortonCheckpointer, "_refuse_misfits", _nothing)), "a renamed key"),
    ("shapes of the optimizer", _without((trainer, "check_optimizer", _nothing)), "optimizer of another rank"),
    ("hearing signals", _without((hooks.StopOnSignal, "_hear", _deaf)), "SIGTERM"),
    ("seeds of images and order", _without((epochs, "seeded", _unseeded)), resume.check),
    ("finite losses", _without((trainer, "guarded", _unguarded)), "a loss that is not finite"),
    ("one training in a folder", _without((filelock.FileLock, "acquire", _nothing)), "two trainings in one folder"),
    ("signs of life", _without((launch, "_watching", _unwatched)), "one of two processes hangs"),
    ("images that cannot be read", _without((loader, "UNREADABLE", ())), "a truncated picture of 120"),
    ("too many of them", _without((epochs, "MOST_UNREADABLE", 1.0)), "one truncated picture of nine"),
    ("values of boxes", _without((coco_checks, "box_problem", _no_problem)), "a box that is NaN"),
    ("values of masks", _without((coco_checks, "mask_problem", _no_problem)), "a polygon of 1e9 pixels"),
    ("ids that differ", _without((coco_checks, "_check_ids", _nothing)), "an annotation twice"),
    ("paths of images", _without((coco_checks, "_image_problem", _no_problem)), "a path out of the folder"),
]


def check(short: bool, folder: Path) -> list[Row]:
    """All of them, but in the short form those alone whose case takes a second."""
    from .faults import collect

    cases = {fault.name: fault for fault in collect(folder, short=True)}
    slow = ("one of two processes hangs", "a zip bomb")
    chosen = [each for each in GUARDS if not short or (isinstance(each[2], str) and each[2] not in slow)]
    kept, idle = 0, []
    for number, (name, change, case) in enumerate(chosen):
        own = folder / f"guard_{number}"
        own.mkdir()
        caught = _fails(change, cases[case] if isinstance(case, str) else case, own)
        kept += caught
        idle += [] if caught else [name]
        print(f"  without {name}: {'fails, as it has to' if caught else 'PASSES'}", file=sys.stderr, flush=True)
    return [Row("with a guard taken away its check fails", kept, len(chosen), "; ".join(idle))]


def _fails(change: Callable[[], None], case: Fault | Callable[[bool, Path], list[Row]], own: Path) -> bool:
    """Whether a check fails, or does not even end well, in a fork without the guard."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            change()
            if isinstance(case, Fault):
                status = int(any(verdict.problem for verdict in run_faults([case])))
            else:
                status = int(any(row.kept != row.tried for row in case(True, own)))
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0

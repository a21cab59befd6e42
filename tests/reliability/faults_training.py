"""Faults while a detector is trained: signals, kills, disks, losses that are not finite, damaged images."""

import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from PIL import Image
from torch import distributed as dist

from norton_det.checkpoint.save import save_checkpoint
from norton_det.checkpoint.torch_file import read_torch
from norton_det.classification import finetune
from norton_det.d2 import launch
from norton_det.d2.build import load_config
from norton_det.d2.files import newest_checkpoint
from norton_det.d2.loader import build_train_loader
from norton_det.data.register import check_datasets
from norton_det.utils.files import hold_folder

from .faults import Fault, tool
from .small import CONFIG, model, prepare, words

LONG = 10_000  # iterations: more than a case has time for
WITHIN = 10.0  # seconds from a signal to the end
ITERATIONS = 3  # of the training that is made once


def train(output: Path, *flags: str, **changes: object) -> None:
    """tools/train_net.py in this process; it does not return."""
    tool("tools/train_net.py", "--config", CONFIG, *flags, *words(output, **changes))


def when(condition: Callable[[], Any], act: Callable[[Any], None]) -> None:
    """In a thread: act once the condition holds."""

    def wait() -> None:
        while not (found := condition()):
            time.sleep(0.02)
        act(found)

    threading.Thread(target=wait, daemon=True).start()


def signalled(number: int) -> Callable[[Path], None]:
    def provoke(folder: Path) -> None:
        out, sent = folder / "out", []

        def send(_: object) -> None:
            time.sleep(0.7)  # anywhere in an iteration
            sent.append(time.monotonic())
            os.kill(os.getpid(), number)

        when(lambda: list(out.glob("model_*.pth")), send)
        try:
            train(out, SOLVER__MAX_ITER=LONG, SOLVER__CHECKPOINT_PERIOD=3)
        finally:
            took = time.monotonic() - sent[0]
            assert took < WITHIN, f"took {took:.1f} s to end"
            saved = read_torch(newest_checkpoint(out))["iteration"]
            print(f"ended within {WITHIN:.0f} s, iteration {saved} saved", file=sys.stderr)

    return provoke


def killed_while_saving(folder: Path) -> None:
    """SIGKILL while a temporary file is there; then the run goes on."""
    out = folder / "out"
    pid = os.fork()
    if pid == 0:
        try:
            train(out, SOLVER__MAX_ITER=LONG)
        finally:
            os._exit(1)
    while not (list(out.glob("model_*.pth")) and list(out.glob(".model_*.part"))):
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    done = read_torch(newest_checkpoint(out))["iteration"]
    train(out, "--resume", SOLVER__MAX_ITER=done + 2)


def disk_full(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    train(folder / "out")


def stale_tag(folder: Path) -> None:
    out = folder / "out"
    shutil.copytree(folder / "trained", out)
    (out / "last_checkpoint").write_text("model_0009999.pth")
    train(out, "--resume", SOLVER__MAX_ITER=ITERATIONS + 1)


def not_finite(folder: Path) -> None:
    train(folder / "out", SOLVER__BASE_LR=1e20, SOLVER__WARMUP_ITERS=0, SOLVER__MAX_ITER=LONG)


def worker_killed(folder: Path) -> None:
    me = os.getpid()

    def children() -> list[int]:
        """Once it trains: before, programs are asked for their versions."""
        tasks = Path(f"/proc/{me}/task").glob("*/children")
        started = newest_checkpoint(folder / "out")
        return [int(pid) for file in tasks for pid in file.read_text().split()] if started else []

    def kill(found: list[int]) -> None:
        os.kill(found[0], signal.SIGKILL)

    when(children, kill)
    train(folder / "out", SOLVER__MAX_ITER=LONG, DATALOADER__NUM_WORKERS=1)


def _steps(wrong: int) -> None:
    """The main of several processes: steps together, until the second one has an accident."""
    for step in range(1000):
        dist.all_reduce(torch.ones(1))
        if step == 3 and comm.get_rank() == 1:
            os.kill(os.getpid(), wrong)


def of_two(wrong: int) -> Callable[[Path], None]:
    def provoke(folder: Path) -> None:
        launch.SILENCE = 6.0
        launch.launch(_steps, wrong, processes=2)

    return provoke


def truncated_picture(folder: Path) -> None:
    """One of 120: it is passed over, told once, and the batch is full."""
    os.environ["DETECTRON2_DATASETS"] = str(prepare(folder, pictures=120))
    cfg = load_config(CONFIG, words(folder / "out"))
    check_datasets(cfg.DATASETS.TRAIN)
    loader = build_train_loader(cfg)
    _, first = next(iter(loader.batch_sampler))[0]
    file = Path(loader.dataset.records[first]["file_name"])
    file.write_bytes(file.read_bytes()[:700])
    train(folder / "out", SOLVER__MAX_ITER=2)


def truncated_pictures(folder: Path) -> None:
    os.environ["DETECTRON2_DATASETS"] = str(prepare(folder))
    for file in (folder / "norton_shapes" / "train2017").glob("*.jpg"):
        file.write_bytes(file.read_bytes()[:700])
    train(folder / "out")


def one_of_nine(folder: Path) -> None:
    os.environ["DETECTRON2_DATASETS"] = str(prepare(folder))
    file = min((folder / "norton_shapes" / "train2017").glob("*.jpg"))
    file.write_bytes(file.read_bytes()[:700])
    train(folder / "out", SOLVER__MAX_ITER=LONG)


def two_runs(folder: Path) -> None:
    with hold_folder(folder / "out", "a test"):
        train(folder / "out")


def not_writable(folder: Path) -> None:
    train(Path("/proc/norton_det"))


def no_such_rank(folder: Path) -> None:
    train(folder / "out", MODEL__NORTON__RANK=12)


def more_processes_than_images(folder: Path) -> None:
    train(folder / "out", SOLVER__IMS_PER_BATCH=0)


def interrupted_classifier(folder: Path) -> None:
    """tools/finetune.py: Ctrl-C in the middle of an epoch, and on."""
    for part in ("train", "val"):
        for name in ("left", "right"):
            inside = folder / "data" / part / name
            inside.mkdir(parents=True)
            for index in range(16):
                Image.new("RGB", (40, 40), (15 * index, 255 * (name == "left"), 0)).save(inside / f"{index}.png")
    weights = save_checkpoint(folder / "w.safetensors", model())
    flags = ["--weights", weights, "--data", folder / "data", "--output", folder / "out", "--epochs", 200]
    flags += ["--batch-size", 4, "--workers", 0, "--image-size", 32, "--resize", 36, "--quiet"]

    cut_fine_tuning(13)  # of 8 in an epoch
    tool("tools/finetune.py", *flags)


def cut_fine_tuning(at: int) -> None:
    """From here on a classifier's training in this process gets SIGTERM before that step."""
    step = finetune._Run._step

    def cut_off(run: Any, images: torch.Tensor, labels: torch.Tensor) -> None:
        if run.step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        step(run, images, labels)

    finetune._Run._step = cut_off  # type: ignore[method-assign]


SAVED = r"interrupted: .*saved.*\n?.*ended within 10 s|ended within 10 s.*\n*interrupted: .*is saved in model"
_CASES: list[tuple[str, Callable[[Path], Any], str, int]] = [
    ("Ctrl-C (SIGINT)", signalled(signal.SIGINT), SAVED, 130),
    ("SIGTERM", signalled(signal.SIGTERM), SAVED, 143),
    ("SIGTERM while a classifier is fine-tuned", interrupted_classifier, r"interrupted: step \d+ is saved in", 143),
    (
        "SIGKILL while saving, then --resume",
        killed_while_saving,
        r"Loading from .*model_|Starting training from",
        0,
    ),
    ("disk full", disk_full, r"model_0000000\.pth: could not be written .*; free some space", 2),
    ("a place that cannot be written", not_writable, r"cannot write in /proc .*; choose another place", 2),
    ("last_checkpoint names what is not there", stale_tag, r"names 'model_0009999\.pth'; the newest whole", 0),
    (
        "nothing to resume",
        lambda f: train(f / "out", "--resume", SOLVER__MAX_ITER=1),
        "nothing to resume, the run",
        0,
    ),
    (
        "two trainings in one folder",
        two_runs,
        r"out: expected a folder for this training alone.*; choose another",
        2,
    ),
    (
        "a loss that is not finite",
        not_finite,
        r"iteration \d+: expected finite losses, got .*(nan|inf|NaN).* with \S+\.jpg.*; lower SOLVER\.BASE_LR",
        2,
    ),
    (
        "a process that reads images is killed",
        worker_killed,
        r"a process that reads images ended .*--resume goes on",
        2,
    ),
    (
        "one of two processes is killed",
        of_two(signal.SIGKILL),
        r"error: process 1 was killed \(SIGKILL\); .*--resume",
        1,
    ),
    ("one of two processes hangs", of_two(signal.SIGSTOP), r"error: process 1 gave no sign of life .*--resume", 1),
    ("a truncated picture of 120", truncated_picture, r"Skipped, cannot be read: \S+\.jpg", 0),
    (
        "one truncated picture of nine",
        one_of_nine,
        r"\.jpg: expected images that can be read, 1 of 9 are .*; replace",
        2,
    ),
    (
        "truncated pictures alone",
        truncated_pictures,
        r"\.jpg: expected the image .*; replace them",
        2,
    ),
    ("a rank above the maximum", no_such_rank, r"MODEL\.NORTON: rank: expected 1 to 9 .*, got 12; use", 2),
    ("batches of no image", more_processes_than_images, r"IMS_PER_BATCH: expected a whole number of 1 or more", 2),
]
FAULTS = [Fault("training", *case) for case in _CASES]

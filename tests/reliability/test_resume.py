"""A training that is cut off at any point and goes on ends with the very bits of one that was not.

Detector and classifier are trained for a few steps with averaged weights; the process is sent SIGTERM before each step
in turn, and a second process goes on. Weights, averages, momenta, statistics and losses are compared bit for bit.
"""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from norton_det.checkpoint.digest import content_digest
from norton_det.checkpoint.torch_file import read_torch
from norton_det.classification.finetune import fine_tune
from norton_det.classification.recipe import Recipe
from norton_det.d2.build import load_config
from norton_det.d2.trainer import NortonTrainer
from norton_det.data.register import check_datasets
from norton_det.utils.stop import Interrupted
from tests import process

from . import LONG
from .faults_training import cut_fine_tuning
from .promises import Row
from .small import CONFIG, model, words

ITERATIONS = 5  # of the detector
EPOCHS, BATCHES = 2, 3  # of the classifier
SECONDS = 300


class Noisy(TensorDataset):
    """Pictures that are augmented at random, as photographs would be."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn(image.shape), label


def cases() -> list[tuple[str, int, int]]:
    """Each cut point, with 0 and 2 processes that read (short: two cuts of the detector, without)."""
    cuts = {"detector": range(1, ITERATIONS) if LONG else (2, 4), "classifier": range(1, EPOCHS * BATCHES)}
    return [(kind, workers, cut) for kind in cuts for workers in ((0, 2) if LONG else (0,)) for cut in cuts[kind]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str, int], str]:
    """``whole(kind, workers)``: the digest of a training that was not interrupted."""

    @functools.cache
    def make(kind: str, workers: int) -> str:
        return uninterrupted(kind, workers, tmp_path_factory.mktemp("whole"))

    return make


@pytest.mark.parametrize(("kind", "workers", "cut"), cases())
def test_resumed_bit_for_bit(kind, workers, cut, whole, tmp_path, keep):
    keep(resumed(kind, workers, cut, whole(kind, workers), tmp_path))


def uninterrupted(kind: str, workers: int, folder: Path) -> str:
    made = process.run(lambda: TRAIN[kind](folder, workers), folder, SECONDS)
    assert made.status == 0, made.err
    return _content(folder)


def resumed(kind: str, workers: int, cut: int, expected: str, folder: Path) -> Row:
    """Cut off, gone on with, and compared."""
    stopped = process.run(lambda: TRAIN[kind](folder, workers, cut), folder, SECONDS)
    went_on = process.run(lambda: TRAIN[kind](folder, workers, resume=True), folder, SECONDS)
    same = stopped.status == 143 and went_on.status == 0 and _content(folder) == expected
    told = f"{workers} workers, cut at {cut} (exit {stopped.status}, {went_on.status})"
    return Row(f"{kind} resumed, bit for bit", int(same), 1, "" if same else told)


def _content(folder: Path) -> str:
    """Digest of the last state; seconds that steps took are no part of it."""
    last = folder / "last.pth"
    content = read_torch(last if last.exists() else folder / "model_final.pth")
    for row in content.get("rows", ()):
        row.pop("seconds")
    return content_digest(content)


def _ended(run: Callable[[], Any]) -> None:
    try:
        run()
    except Interrupted as error:
        os._exit(128 + error.number)


def _detector(out: Path, workers: int, cut: int = -1, resume: bool = False) -> None:
    changes = {"SOLVER__MAX_ITER": ITERATIONS, "SOLVER__CHECKPOINT_PERIOD": 1000, "SOLVER__EMA_DECAY": 0.5}
    cfg = load_config(CONFIG, words(out, DATALOADER__NUM_WORKERS=workers, **changes))
    check_datasets(cfg.DATASETS.TRAIN)
    torch.manual_seed(0)  # of the fresh weights
    out.mkdir(exist_ok=True)
    trainer = NortonTrainer(cfg)
    trainer.resume_or_load(resume=resume)

    def step(run: Callable[[], None] = trainer.run_step) -> None:
        if trainer.iter == cut:
            os.kill(os.getpid(), signal.SIGTERM)
        run()

    trainer.run_step = step
    _ended(trainer.train)


def _classifier(out: Path, workers: int, cut: int = -1, resume: bool = False) -> None:
    torch.manual_seed(0)
    labels = torch.arange(4 * BATCHES) % 2
    train = Noisy(torch.randn(len(labels), 3, 32, 32) + labels[:, None, None, None], labels)
    val = TensorDataset(*train.tensors)
    network = model()
    recipe = Recipe(epochs=EPOCHS, batch_size=4, learning_rate=0.002, workers=workers, ema=0.5)
    cut_fine_tuning(cut)
    _ended(lambda: fine_tune(network, train, val, recipe, out, resume=resume))


TRAIN: dict[str, Callable[..., None]] = {"detector": _detector, "classifier": _classifier}

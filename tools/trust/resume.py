"""A training that is cut off at any point and goes on ends with the very bits of one that was not.

Detector and classifier are trained for a few steps with averaged weights; the process is sent SIGTERM before each step
in turn, and a second process goes on. Weights, averages, momenta, statistics and losses are compared bit for bit.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from norton_det.models.resnet import NortonResNet
from norton_det.utils.stop import Interrupted

from .cases import Row
from .faults_checkpoint import SPEC
from .faults_training import cut_fine_tuning, in_fork
from .small import CONFIG, prepare, words

ITERATIONS = 5  # of the detector
EPOCHS, BATCHES = 2, 3  # of the classifier


class Noisy(TensorDataset):
    """Pictures that are augmented at random, as photographs would be."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn(image.shape), label


def check(short: bool, folder: Path) -> list[Row]:
    """Each cut point, with 0 and 2 processes that read (short: two cuts of the detector, without)."""
    prepare(folder)
    everywhere = range(1, ITERATIONS)
    detector = _compare(folder, "detector", _detector, [2, 4] if short else everywhere, (0,) if short else (0, 2))
    steps = range(1, EPOCHS * BATCHES)
    return [detector, _compare(folder, "classifier", _classifier, steps, (0,) if short else (0, 2))]


def _compare(folder: Path, name: str, train: Callable[..., Any], cuts: Any, workers: tuple[int, ...]) -> Row:
    kept, tried, wrong = 0, 0, []
    for number in workers:
        whole = folder / f"{name}_{number}_whole"
        assert in_fork(lambda number=number, whole=whole: train(whole, number), quiet=True) == 0
        for cut in cuts:
            out, tried = folder / f"{name}_{number}_{cut}", tried + 1
            stopped = in_fork(lambda number=number, out=out, cut=cut: train(out, number, cut), quiet=True)
            went_on = in_fork(lambda number=number, out=out: train(out, number, resume=True), quiet=True)
            same = stopped == 143 and went_on == 0 and _content(out) == _content(whole)
            kept += same
            wrong += [] if same else [f"{number} workers, cut at {cut} (exit {stopped}, {went_on})"]
    return Row(f"{name} resumed, bit for bit", kept, tried, "; ".join(wrong)[:300])


def _content(folder: Path) -> str:
    """Digest of the last state; seconds that steps took are no part of it."""
    last = folder / "last.pth"
    content = read_torch(last if last.exists() else folder / "model_final.pth", True)
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
    model = NortonResNet(SPEC, 2)
    recipe = Recipe(epochs=EPOCHS, batch_size=4, learning_rate=0.002, workers=workers, ema=0.5)
    cut_fine_tuning(cut)
    _ended(lambda: fine_tune(model, train, val, recipe, out, resume=resume))

"""How long to train on the data at hand: a schedule in epochs, and a word where that of other data is inherited."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase

from ..utils.errors import InputError

logger = logging.getLogger(__name__)
PARTS = 5  # of a training, after each of which it is saved, and evaluated where TEST.EVAL_PERIOD asks for that
WARM_UP = 0.1  # of a training, at most
ITERATIONS = 1000  # about; what few pictures need to be learned from trained weights
FEWEST_EPOCHS, MOST_EPOCHS = 12, 100
MEASURED = 5  # iterations
FIRST = 2  # iterations that are not measured: memory and kernels are made in them


def count_images(cfg: CfgNode) -> int:
    """The images of DATASETS.TRAIN that are trained on: with an object that is no crowd, unless all are asked for."""
    every = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    records = (record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name))
    return sum(
        every or any(not each.get("iscrowd", 0) for each in record.get("annotations", ({},))) for record in records
    )


def with_epochs(cfg: CfgNode, epochs: float, images: int, given: Sequence[str] = ()) -> CfgNode:
    """A config that trains for so many passes over its images.

    SOLVER.MAX_ITER follows from them, STEPS keep their share of it, WARMUP_ITERS are at most a tenth; it is saved, and
    where TEST.EVAL_PERIOD is set evaluated, after each fifth, but not more often than once in an epoch.

    Args:
        cfg: of Detectron2.
        epochs: more than 0.
        images: of ``count_images``.
        given: keys that the user has set, which stay.

    Raises:
        InputError: epochs that are none; SOLVER.MAX_ITER is given beside them; no images.
    """
    if not 0 < epochs < math.inf:
        raise InputError(f"--epochs: expected more than 0, got {epochs:g}; 12 to 100 are usual")
    if "SOLVER.MAX_ITER" in given:
        raise InputError("--epochs: expected without SOLVER.MAX_ITER, got both; leave one out")
    if not images:
        raise InputError(
            f"DATASETS.TRAIN {cfg.DATASETS.TRAIN}: expected images with objects, found none; annotate some"
        )
    solver, scheduled = cfg.SOLVER, cfg.clone()
    scheduled.defrost()
    iterations = max(1, math.ceil(epochs * images / solver.IMS_PER_BATCH))
    period = max(1, math.ceil(images / solver.IMS_PER_BATCH), math.ceil(iterations / PARTS))
    steps = dict.fromkeys(round(step * iterations / solver.MAX_ITER) for step in solver.STEPS)
    values: dict[str, Any] = {
        "SOLVER.STEPS": tuple(step for step in steps if 0 < step < iterations),
        "SOLVER.WARMUP_ITERS": min(solver.WARMUP_ITERS, int(WARM_UP * iterations)),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "TEST.EVAL_PERIOD": period if cfg.TEST.EVAL_PERIOD else 0,
    }
    scheduled.SOLVER.MAX_ITER = iterations
    for key, value in values.items():
        if key not in given:
            section, name = key.split(".")
            scheduled[section][name] = value
    if cfg.is_frozen():
        scheduled.freeze()
    return scheduled


def is_odd(cfg: CfgNode, images: int) -> bool:
    """Whether a training passes over its images less than once, or more often than anybody would want."""
    return not 1 <= epochs_of(cfg, images) <= 2 * MOST_EPOCHS


def proposal(cfg: CfgNode, images: int) -> tuple[int, int]:
    """Epochs and images of a batch that suit so many images.

    Returns:
        Epochs, of which there are as many as make about a thousand iterations, within 12 and 100; the batch.
    """
    batch = min(cfg.SOLVER.IMS_PER_BATCH, 4 if cfg.MODEL.DEVICE == "cpu" else 16)
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(ITERATIONS * batch / max(1, images)))), batch


def tell_schedule(cfg: CfgNode, images: int) -> None:
    """Say how long a training is, in passes over its images."""
    solver = cfg.SOLVER
    logger.info(
        "%.1f epochs of %d images in batches of %d: SOLVER.MAX_ITER %d STEPS %s WARMUP_ITERS %d CHECKPOINT_PERIOD %d",
        epochs_of(cfg, images),
        images,
        solver.IMS_PER_BATCH,
        *(solver[key] for key in ("MAX_ITER", "STEPS", "WARMUP_ITERS", "CHECKPOINT_PERIOD")),
    )


def epochs_of(cfg: CfgNode, images: int) -> float:
    """How often a training passes over its images."""
    return float(cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / max(1, images))


def tell_proposal(cfg: CfgNode, images: int) -> tuple[int, int]:
    """Say that a schedule is of other data, and how to have one for these.

    Returns:
        Iterations of the proposal, and images of its batch.
    """
    solver, (epochs, batch) = cfg.SOLVER, proposal(cfg, images)
    iterations = math.ceil(epochs * images / batch)
    logger.warning(
        "SOLVER.MAX_ITER %d is for the config's own data: %.1f epochs of these %d images, in batches of %d, short side "
        "%s. Proposed for these: --epochs %d, with SOLVER.IMS_PER_BATCH %d %d iterations (and INPUT.MIN_SIZE_TRAIN, if "
        "the pictures are smaller)",
        solver.MAX_ITER,
        epochs_of(cfg, images),
        images,
        solver.IMS_PER_BATCH,
        "/".join(map(str, cfg.INPUT.MIN_SIZE_TRAIN)),
        epochs,
        batch,
        iterations,
    )
    return iterations, batch


class Pace(HookBase):
    """Tells once, after a few iterations, how long a training takes, and how long the proposed one would.

    Args:
        proposed: iterations of a proposal and its images of a batch; ``None`` for none.
        batch: images of a batch of this training.
    """

    def __init__(self, proposed: tuple[int, int] | None, batch: int) -> None:
        self.proposed, self.batch = proposed, batch

    def after_step(self) -> None:
        done = self.trainer.iter - self.trainer.start_iter
        if done != FIRST + MEASURED - 1:
            return
        history = self.trainer.storage.history("time")
        seconds = history.median(MEASURED)
        left = self.trainer.max_iter - self.trainer.iter - 1
        text = f"{seconds:.2f} s an iteration: {left} more take {_duration(left * seconds)}"
        if self.proposed is not None:
            iterations, batch = self.proposed
            shorter = _duration(iterations * seconds * batch / self.batch)
            text += f"; the {iterations} iterations proposed above would take about {shorter}"
        logger.warning("%s", text)


def _duration(seconds: float) -> str:
    """Such as "3 h"."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"

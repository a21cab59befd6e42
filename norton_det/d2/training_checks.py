"""Settings of a training that make no sense, or that Detectron2 asserts on, before anything is built."""

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from ..utils.errors import InputError
from ..utils.files import require_file
from .config_values import require_name

SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
SAMPLERS = (
    *("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
    *("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"),
)


def check_training(cfg: CfgNode, trainer: type[DefaultTrainer] | None = None) -> None:
    """Refuse settings of training that make no sense.

    Args:
        cfg: whose values are each what they may be, see ``config_checks.check_model``.
        trainer: of one's own, whose schedules and data sets may be others than Detectron2 knows.

    Raises:
        InputError: one line naming the key.
    """
    solver = cfg.SOLVER
    if solver.DISTILL.WEIGHTS:
        require_file(solver.DISTILL.WEIGHTS, "the teacher of SOLVER.DISTILL.WEIGHTS")
    if not _is_its_own(trainer, "build_lr_scheduler"):
        _check_schedule(solver)
    if not _is_its_own(trainer, "build_train_loader"):
        _check_loader(cfg)
    if solver.NESTEROV and not solver.MOMENTUM:
        raise InputError("SOLVER.MOMENTUM: expected more than 0 with NESTEROV, got 0; use 0.9, or NESTEROV False")
    reference = solver.REFERENCE_WORLD_SIZE
    if reference and solver.IMS_PER_BATCH % reference:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH: expected a multiple of REFERENCE_WORLD_SIZE {reference}, got "
            f"{solver.IMS_PER_BATCH}; set REFERENCE_WORLD_SIZE 0"
        )


def _is_its_own(trainer: type[DefaultTrainer] | None, name: str) -> bool:
    """Whether a trainer has a method that is neither Detectron2's nor of this package."""
    method = getattr(trainer, name, None)
    return method is not None and not method.__module__.startswith(("detectron2.", "norton_det."))


def _check_schedule(solver: CfgNode) -> None:
    require_name("SOLVER.LR_SCHEDULER_NAME", solver.LR_SCHEDULER_NAME, SCHEDULERS)
    steps = list(solver.STEPS)
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        if steps != sorted(set(steps)):
            raise InputError(f"SOLVER.STEPS: expected growing iterations, got {steps}; sort them")
        if solver.MAX_ITER in steps:
            raise InputError(
                f"SOLVER.STEPS: expected less than SOLVER.MAX_ITER {solver.MAX_ITER}, got {steps}; leave it out"
            )
        within = sum(step < solver.MAX_ITER for step in steps)
        if within >= solver.MAX_ITER:
            raise InputError(
                f"SOLVER.STEPS: expected fewer than SOLVER.MAX_ITER {solver.MAX_ITER}, got {within}; use ()"
            )
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and solver.BASE_LR_END > solver.BASE_LR:
        raise InputError(
            f"SOLVER.BASE_LR_END: expected BASE_LR {solver.BASE_LR:g} at most, got {solver.BASE_LR_END:g}; lower it"
        )


def _check_loader(cfg: CfgNode) -> None:
    loader, crop = cfg.DATALOADER, cfg.INPUT.CROP
    if not cfg.DATASETS.TRAIN:
        raise InputError(
            "DATASETS.TRAIN: expected a data set to train on, got none; add --register NAME=JSON:IMAGES and "
            "DATASETS.TRAIN \"('NAME',)\""
        )
    require_name("DATALOADER.SAMPLER_TRAIN", loader.SAMPLER_TRAIN, SAMPLERS)
    if loader.SAMPLER_TRAIN == "RandomSubsetTrainingSampler" and "RANDOM_SUBSET_RATIO" not in loader:
        raise InputError(
            "DATALOADER.SAMPLER_TRAIN: expected a sampler of this Detectron2, got RandomSubsetTrainingSampler, whose "
            "RANDOM_SUBSET_RATIO it lacks; use TrainingSampler"
        )
    if loader.SAMPLER_TRAIN.startswith("Weighted") and "TRAIN_REPEAT_FACTOR" not in cfg.DATASETS:
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN: expected a sampler of this Detectron2, got {loader.SAMPLER_TRAIN}, whose "
            "DATASETS.TRAIN_REPEAT_FACTOR it lacks; use RepeatFactorTrainingSampler"
        )
    sizes = list(cfg.INPUT.MIN_SIZE_TRAIN)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        raise InputError(
            f"INPUT.MIN_SIZE_TRAIN: expected the least and the greatest size with MIN_SIZE_TRAIN_SAMPLING range, got "
            f"{sizes}; write ({min(sizes)}, {max(sizes)})"
        )
    if crop.ENABLED:
        relative, values = crop.TYPE.startswith("relative"), list(crop.SIZE)
        if relative and max(values) > 1:
            raise InputError(f"INPUT.CROP.SIZE: expected shares up to 1 with {crop.TYPE}, got {values}; use [0.9, 0.9]")
        if not relative and any(value != int(value) for value in values):
            raise InputError(f"INPUT.CROP.SIZE: expected whole pixels with {crop.TYPE}, got {values}; use [256, 256]")
        if crop.TYPE == "absolute_range" and values[0] > values[1]:
            raise InputError(f"INPUT.CROP.SIZE: expected the least size first, got {values}; exchange them")

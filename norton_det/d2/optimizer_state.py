"""The optimizer of a resumed run: momenta of the checkpoint, settings of the config.

torch and Detectron2 load both from the checkpoint, so that another SOLVER.BASE_LR, IMS_PER_BATCH, WEIGHT_DECAY or
MOMENTUM would be read, logged, and not used.
"""

import logging
from typing import Any

import torch
from detectron2.solver import LRMultiplier
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..utils.errors import InputError

logger = logging.getLogger(__name__)
Settings = list[dict[str, Any]]
NOT_SETTINGS = ("params", "param_names", "lr")  # the rate at hand follows from the schedule


def settings_of(optimizer: Optimizer) -> Settings:
    """The settings of each group of parameters: its base rate (``initial_lr``), momentum, decay and so on."""
    return [{key: value for key, value in group.items() if key not in NOT_SETTINGS} for group in optimizer.param_groups]


def apply_settings(optimizer: Optimizer, scheduler: LRScheduler, settings: Settings) -> None:
    """Give an optimizer that was loaded, and its schedule, the settings that the config made; changes are told.

    The iteration stays. Where nothing has changed, nothing changes by a bit. A schedule that is not Detectron2's keeps
    the settings of its checkpoint, with a word.

    Args:
        optimizer, scheduler: as they were loaded.
        settings: of ``settings_of`` before.
    """
    if not isinstance(scheduler, LRMultiplier):
        if changes := _changes(settings_of(optimizer), settings):
            logger.warning("Resumed with what the checkpoint has, not the config: %s", "; ".join(changes))
        return
    before = settings_of(optimizer), [group["lr"] for group in optimizer.param_groups]
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)
    scheduler.base_lrs = [values["initial_lr"] for values in settings]
    ended = scheduler.last_epoch >= scheduler._max_iter  # the schedule says nothing of what comes then
    rates = before[1] if ended else scheduler.get_lr()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = list(rates)
    changes = _changes(before[0], settings)
    if before[1] != rates:
        changes.append(f"learning rate of iteration {scheduler.last_epoch} {before[1][0]:g} -> {rates[0]:g}")
    if changes:
        logger.warning("Resumed with the config's settings, where the checkpoint had others: %s", "; ".join(changes))


def _changes(old: Settings, new: Settings) -> list[str]:
    """What differs, each once, as "momentum 0.9 -> 0.8"."""
    names = {"initial_lr": "base learning rate", "weight_decay": "weight decay"}
    changes = [
        f"{names.get(key, key)} {group.get(key)} -> {value}"
        for group, values in zip(old, new, strict=True)
        for key, value in values.items()
        if group.get(key, value) != value
    ]
    return list(dict.fromkeys(changes))


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse a state that was loaded for parameters of other shapes, which torch does not look at.

    Raises:
        InputError: with both shapes.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                raise InputError(
                    f"optimizer: expected {name} of shape {tuple(parameter.shape)}, got {tuple(value.shape)}, that of "
                    "another network; start anew without --resume"
                )

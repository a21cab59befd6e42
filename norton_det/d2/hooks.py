"""Hooks of Detectron2's trainer: random numbers that a resumed run has again, and averaged weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..checkpoint.torch_file import save_torch
from ..utils.seeds import seed_all
from .build import save_detector
from .checkpoint import info_of_model


class Reseed(HookBase):
    """Before each step, random numbers follow from the trainer's ``seed``, the iteration and the process alone."""

    def before_step(self) -> None:
        seed_all(self.trainer.seed, 1, self.trainer.iter, comm.get_rank())


class Average(HookBase):
    """An exponential moving average of the weights, kept beside them, saved with the trainer's state.

    The decay rises to its value as (1 + n) / (10 + n) with the steps n, so that short runs do not keep their start.

    At the end of training it is written to ``model_ema.safetensors`` (``.pth`` of a detector that is not norton's).

    Args:
        model: to be averaged, without DistributedDataParallel around it.
        decay: of the average, such as 0.999.
        folder: of the file.
    """

    def __init__(self, model: nn.Module, decay: float, folder: str) -> None:
        self.source, self.folder = model, Path(folder)
        self.average = AveragedModel(model, multi_avg_fn=_warm_average(decay), use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """With the averaged weights."""
        return self.average.module

    def after_step(self) -> None:
        self.average.update_parameters(self.source)

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter or not comm.is_main_process():
            return
        if info_of_model(self.model) is not None:
            save_detector(self.folder / "model_ema.safetensors", self.model)
        else:
            save_torch(self.folder / "model_ema.pth", {"model": self.model.state_dict()})

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])


def _warm_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    def average(kept: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
        reached = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(reached)(kept, current, steps)

    return average

"""Hooks of Detectron2's trainer: random numbers that a resumed run has again, averaged weights, and what becomes of a
training that is interrupted or goes wrong: its last whole state is kept, and the cause is named."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from ..checkpoint.save import save_detector
from ..checkpoint.torch_file import save_torch
from ..classification.epochs import Unreadable
from ..utils.errors import InputError, first_line
from ..utils.seeds import seed_all
from ..utils.stop import StopOnSignal, remember_statistics, run_kept
from .checkpoint import info_of_model

logger = logging.getLogger(__name__)


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
        """The model with the averaged weights."""
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


class Guard(HookBase):
    """The last whole state of a training, and the images of the batch at hand.

    A state is whole from the end of an iteration, with its averages and schedules, to the next step of the optimizer:
    until then only statistics of normalisation change, and those are remembered. Registered before the evaluation,
    which may be cut off, and after all that belongs to the state.

    Args:
        model: that is trained, without DistributedDataParallel around it.
        stop: hears signals.
        images: number of images of the data set.

    Attributes:
        done: number of the last iteration that is complete; -1 for none.
        files: names of the batch at hand.
    """

    def __init__(self, model: nn.Module, stop: StopOnSignal, images: int) -> None:
        self.model, self.stop = model, stop
        self.done = -1
        self.files: list[str] = []
        self.unreadable = Unreadable(images)
        self._restore: Callable[[], None] = lambda: None
        model.register_forward_pre_hook(self._note_batch)

    def before_train(self) -> None:
        self.done = self.trainer.start_iter - 1
        self.trainer._trainer.optimizer.register_step_pre_hook(lambda *_: self.stop.hold())
        self._restore = remember_statistics(self.model)

    def after_step(self) -> None:
        self.done = self.trainer.iter
        self._restore = remember_statistics(self.model)
        self.stop.release()

    def keep(self) -> str:
        """Save the last whole state, unless there is none to save, or this is not the first process.

        Returns:
            What became of it, to be put into a sentence.
        """
        if self.stop.held or not comm.is_main_process() or self.done < self.trainer.start_iter:
            return self._saved_before()
        self._restore()
        self.trainer.iter = self.trainer._trainer.iter = self.done  # they are saved too
        name = f"model_{self.done:07d}"
        try:
            self.trainer.checkpointer.save(name, iteration=self.done)
        except (InputError, FloatingPointError) as error:
            return f"{self._saved_before()}; iteration {self.done} could not be saved: {first_line(error)}"
        return f"iteration {self.done} is saved in {name}.pth, --resume goes on from there"

    def _saved_before(self) -> str:
        """The part of a sentence that says what earlier checkpoint there is."""
        file = self.trainer.checkpointer.get_checkpoint_file()
        return f"--resume goes on from {file}" if file else "nothing was saved yet"

    def _note_batch(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note, before each forward, the images that it is of and those that could not be read."""
        if not model.training:
            return
        batch = inputs[0] if inputs and isinstance(inputs[0], list) else []
        self.files = [str(item.get("file_name", "?")) for item in batch if isinstance(item, dict)]
        for item in batch:
            for file, reason in item.pop("unreadable", ()):
                if file not in self.unreadable.names:
                    logger.warning("Skipped, cannot be read: %s (%s)", file, reason)
                self.unreadable.add([file])


def guarded(train: Callable[[], Any], guard: Guard) -> Any:
    """Run a training; what ends it early is told in one line, with what is kept of it.

    Raises:
        Interrupted: by SIGINT or SIGTERM; the state is saved.
        InputError: a loss that is not finite, a process that reads images was killed, bad data.
    """

    def train_or_explain() -> Any:
        try:
            return train()
        except FloatingPointError as error:
            losses = re.findall(r"'(\w+)': (?:np\.float\d+\()?(nan|-?inf)", str(error))
            causes = ", ".join(f"{name} {value}" for name, value in losses) or first_line(error)
            files = ", ".join(guard.files[:8])
            raise InputError(
                f"iteration {guard.trainer.iter}: expected finite losses, got {causes} with {files}; lower "
                "SOLVER.BASE_LR or look at these images"
            ) from None

    return run_kept(guard.stop, train_or_explain, guard.keep, "lower DATALOADER.NUM_WORKERS")


def _warm_average(decay: float) -> Callable[[PARAM_LIST, PARAM_LIST, Tensor | int], None]:
    def average(kept: PARAM_LIST, current: PARAM_LIST, steps: Tensor | int) -> None:
        current_decay = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(current_decay)(kept, current, steps)

    return average

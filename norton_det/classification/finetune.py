"""The one fine-tuning stage that follows compression (NORTON, section IV), with optional distillation.

The default is the paper's recipe: SGD with momentum 0.9, label smoothing 0.1, weight decay 1e-4, learning rate 0.01
after a linear warm-up of 5 epochs (a tenth of shorter runs), then a cosine to zero. The losses are in ``losses``.

Under torchrun every process takes its share of each batch; rank 0 evaluates and writes. Files in the output folder:
``last.pth`` (to resume), ``best.safetensors`` (norton checkpoint), ``metrics.json``, ``curve.png``. ``last.pth`` is
written after each epoch, and where a run is interrupted or goes wrong; resumed, it goes on as if nothing had been.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..checkpoint.save import save_checkpoint
from ..checkpoint.torch_file import read_torch, save_torch
from ..models.resnet import NortonResNet
from ..utils.errors import InputError, first_line
from ..utils.files import hold_folder, require_file, write_text
from ..utils.stop import StopOnSignal, remember_statistics, run_kept
from .accuracy import Accuracy, evaluate
from .epochs import Unreadable, file_names, make_loader
from .losses import WithFeatures, losses
from .recipe import Recipe


def fine_tune(
    model: NortonResNet,
    train: Dataset,
    val: Dataset,
    recipe: Recipe,
    output: str | Path,
    *,
    teacher: NortonResNet | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Fine-tune a classifier in place and keep its best weights.

    Args:
        model: dense or compressed.
        train, val: give (image (3, H, W), label); labels of -1 are left out.
        recipe: how.
        output: folder for the files of this module's list.
        teacher: dense network, needed by ``distill`` and ``features``.
        device: cpu, cuda, ...; under torchrun with CUDA, the process's own GPU.
        resume: go on from ``last.pth`` in ``output``.
        progress: show a bar.

    Returns:
        One row per epoch: epoch, loss, top1, top5 (percent), learning_rate, seconds.

    Raises:
        Interrupted: by SIGINT or SIGTERM; the state is saved.
        InputError: no teacher where one is needed, nothing to resume, another run in ``output``, a loss that is not
            finite, a process that reads images was killed, images that cannot be read, or no room to write.
    """
    if (recipe.distill or recipe.features) and teacher is None:
        raise InputError("recipe: distillation needs the dense network, got none; give a teacher")
    run = _Run(model, train, val, recipe, Path(output), teacher, device)
    with hold_folder(output, "this fine-tuning") if run.main else nullcontext():
        if resume:
            run.load()
        run.guarded(progress)
    return run.rows


class _Run:
    """State of one fine-tuning: weights, optimizer, average, step, and what was measured."""

    def __init__(
        self,
        model: NortonResNet,
        train: Dataset,
        val: Dataset,
        recipe: Recipe,
        output: Path,
        teacher: NortonResNet | None,
        device: str,
    ) -> None:
        self.recipe, self.output, self.device = recipe, output, device
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        self.main = not dist.is_initialized() or dist.get_rank() == 0
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        self.teacher = None if teacher is None else teacher.to(device).to(memory_format=torch.channels_last).eval()
        torch.manual_seed(recipe.seed)
        self.wrapped: nn.Module = WithFeatures(self.model)
        if self.processes > 1:
            self.wrapped = nn.parallel.DistributedDataParallel(self.wrapped)
        update = get_ema_multi_avg_fn(recipe.ema)
        self.average = AveragedModel(self.model, multi_avg_fn=update, use_buffers=True) if recipe.ema else None
        groups = _decay_groups(self.model, recipe.weight_decay)
        self.optimizer = torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum, nesterov=recipe.momentum > 0)
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=recipe.amp == "float16")
        count = len(train)  # type: ignore[arg-type]
        rank = dist.get_rank() if dist.is_initialized() else 0
        self.loader = make_loader(train, count, recipe.batch_size, recipe.workers, recipe.seed, rank, self.processes)
        self.batches = count // recipe.batch_size  # of an epoch
        self.train_data, self.unreadable = train, Unreadable(count)
        self.batch_indices: list[int] = []  # of the images at hand
        self.val = DataLoader(val, 64, num_workers=recipe.workers)
        self.step, self.steps = 0, max(1, round(recipe.epochs * self.batches))
        self.losses: list[float] = []  # of the epoch so far
        self.stop, self.restore = StopOnSignal(), remember_statistics(self.model)
        self.best = -1.0
        self.rows: list[dict[str, Any]] = []

    def guarded(self, progress: bool) -> None:
        """Run ``train``; what ends it early is told in one line, and the last whole state is kept."""
        run_kept(self.stop, lambda: self.train(progress), self._keep, "use fewer workers")

    def train(self, progress: bool) -> None:
        with tqdm(total=self.steps, initial=self.step, desc="fine-tune", unit="step", disable=not progress) as bar:
            while self.step < self.steps or self.losses:
                started, complete = time.perf_counter(), self.step % self.batches == 0 or self.step >= self.steps
                if not (self.losses and complete):  # else it was cut off in the evaluation
                    self._epoch(self.step // self.batches, bar)
                accuracy = self._evaluate() if self.main else None
                self.stop.hold()
                if accuracy is not None:
                    loss, seconds = sum(self.losses) / len(self.losses), time.perf_counter() - started
                    self._record(self.step / self.batches, loss, accuracy, seconds)
                    bar.set_postfix_str(f"loss {loss:.3f}, Top-1 {accuracy.top1:.2f} %")
                self.losses = []
                self._mark_whole()
                if dist.is_initialized():
                    dist.barrier()

    def _epoch(self, epoch: int, bar: Any) -> None:
        """Train on the batches of an epoch that are left."""
        self.loader.batch_sampler.epoch = epoch  # type: ignore[union-attr]
        self.loader.batch_sampler.start = self.step - epoch * self.batches  # type: ignore[union-attr]
        self.model.train()
        self.restore = remember_statistics(self.model)
        for images, labels, indices in self.loader:
            self.batch_indices = indices.tolist()
            self.unreadable.add(file_names(self.train_data, indices[labels < 0].tolist()))
            self._step(images.to(self.device), labels.to(self.device))
            bar.update()
            self._mark_whole()
            if self.step >= self.steps:
                break

    def _mark_whole(self) -> None:
        """The state is whole from here to the next step of the optimizer, but for what normalisation counts."""
        self.restore = remember_statistics(self.model)
        self.stop.release()

    def _step(self, images: Tensor, labels: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        images = images.contiguous(memory_format=torch.channels_last)
        kind, dtype = torch.device(self.device).type, getattr(torch, self.recipe.amp)
        with torch.autocast(kind, dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32):
            logits, features = self.wrapped(images)
            terms = losses(self.recipe, self.teacher, logits.float(), features, images, labels)
            loss = torch.stack(list(terms.values())).sum()
        value = float(loss.detach())
        if not math.isfinite(value):
            causes = ", ".join(f"{name} {float(term.detach())}" for name, term in terms.items() if not term.isfinite())
            names = ", ".join(file_names(self.train_data, self.batch_indices[:8]))
            raise InputError(
                f"step {self.step}: expected a finite loss, got {value}; "
                f"lower the learning rate ({causes}; with {names})"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.stop.hold()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        self.losses.append(value)

    def _learning_rate(self) -> float:
        """The learning rate of the coming step: linear warm-up, then half a cosine."""
        warm = min(self.recipe.warmup_epochs * self.batches, 0.1 * self.steps)
        if self.step < warm:
            return self.recipe.learning_rate * (self.step + 1) / (warm + 1)
        share = (self.step - warm) / max(1.0, self.steps - warm)
        return self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    def _evaluate(self) -> Accuracy:
        return evaluate(self._candidate(), self.val, device=self.device)

    def _candidate(self) -> NortonResNet:
        return self.model if self.average is None else self.average.module  # type: ignore[return-value]

    def _record(self, epoch: float, loss: float, accuracy: Accuracy, seconds: float) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        self.rows.append(
            {
                "epoch": round(epoch, 3),
                "loss": loss,
                "top1": accuracy.top1,
                "top5": accuracy.top5,
                "learning_rate": rate,
                "seconds": seconds,
            }
        )
        if accuracy.top1 > self.best:
            self.best = accuracy.top1
            save_checkpoint(self.output / "best.safetensors", self._candidate())
        self._save([])
        report = {"recipe": asdict(self.recipe), "spec": self.model.spec.to_dict(), "epochs": self.rows}
        write_text(self.output / "metrics.json", json.dumps(report, indent=1) + "\n")

    def _save(self, losses: list[float]) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "step": self.step,
            "steps": self.steps,
            "losses": losses,
            "recipe": asdict(self.recipe),
            "spec": self.model.spec.to_json(),
            "rows": self.rows,
        }
        save_torch(self.output / "last.pth", state)

    def _keep(self) -> str:
        """Save the last whole state, unless that is on the disk; what became of it, to be put into a sentence."""
        path = self.output / "last.pth"
        if self.main and self.losses and not self.stop.held and self._is_finite():
            self.restore()
            try:
                self._save(self.losses)
            except InputError as error:
                return f"step {self.step} could not be saved: {error}"
            return f"step {self.step} is saved in {path}, --resume goes on from there"
        return f"--resume goes on from {path}" if path.exists() else "nothing was saved yet"

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            return read_torch(path)
        except InputError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{path}: expected the state of this network's fine-tuning; {reason}") from None

    def _is_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())

    def load(self) -> None:
        """Take up ``last.pth``."""
        path = require_file(self.output / "last.pth", "the state of a fine-tuning to resume")
        try:
            state = self._read(path)
            settings: dict[str, Any] = {"steps": self.steps, "spec": self.model.spec.to_json(), **asdict(self.recipe)}
            saved = {"steps": state["steps"], "spec": state["spec"], **state["recipe"]}
            for field in settings:
                if field == "workers" or settings[field] == saved.get(field):
                    continue
                raise InputError(
                    f"{path}: {field}: expected {saved.get(field)!r} as in the run to resume, got {settings[field]!r}; "
                    "resume with the same settings, weights and data"
                )
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except InputError:
            raise
        except Exception as error:  # whatever a damaged or foreign file leads to
            reason = first_line(error)
            raise InputError(f"{path}: expected the state of this network's fine-tuning ({reason})") from None
        self.step, self.rows, self.losses = state["step"], state["rows"], state.get("losses", [])
        self.best = max((row["top1"] for row in self.rows), default=-1.0)


def _decay_groups(model: nn.Module, weight_decay: float) -> Iterator[dict[str, Any]]:
    """Matrices decay; biases and normalisation do not (they hold the scale that a fit has set)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    yield {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay}
    yield {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}

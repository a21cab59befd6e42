"""The one fine-tuning stage that follows compression (NORTON, section IV), with optional distillation.

The default is the paper's recipe: SGD with momentum 0.9, label smoothing 0.1, weight decay 1e-4, learning rate 0.01
after a linear warm-up of 5 epochs (a tenth of shorter runs), then a cosine to zero. Distillation adds the dense
network as a teacher: its logits (Hinton et al., 2015) and, at the end of every stage, its features where the channels
are the same and their spatial attention where channels were pruned (Zagoruyko and Komodakis, ICLR 2017).

Under torchrun every process takes its share of each batch; rank 0 evaluates and writes. Files in the output folder:
``last.pth`` (to resume), ``best.safetensors`` (norton checkpoint), ``metrics.json``, ``curve.png``.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm

from .checkpoint import save_checkpoint
from .classify import Accuracy, evaluate
from .errors import InputError, first_line
from .files import atomic_path, require_file
from .recipe import Recipe
from .resnet import NortonResNet


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
        InputError: no teacher where one is needed, nothing to resume, a loss that is not finite, or no room to write.
    """
    if (recipe.distill or recipe.features) and teacher is None:
        raise InputError("recipe: distillation needs the dense network, got none; give a teacher")
    run = _Run(model, train, val, recipe, Path(output), teacher, device)
    if resume:
        run.load()
    run.train(progress)
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
        self.wrapped: nn.Module = _WithFeatures(self.model)
        if self.processes > 1:
            self.wrapped = nn.parallel.DistributedDataParallel(self.wrapped)
        average = get_ema_multi_avg_fn(recipe.ema)
        self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True) if recipe.ema else None
        groups = _decay_groups(self.model, recipe.weight_decay)
        self.optimizer = torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum, nesterov=recipe.momentum > 0)
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=recipe.amp == "float16")
        size = max(1, recipe.batch_size // self.processes)
        self.sampler: DistributedSampler = DistributedSampler(
            train, self.processes, dist.get_rank() if dist.is_initialized() else 0, seed=recipe.seed, drop_last=True
        )
        options: dict[str, Any] = {"num_workers": recipe.workers, "persistent_workers": False}
        self.loader: DataLoader = DataLoader(train, size, sampler=self.sampler, drop_last=True, **options)
        if not len(self.loader):
            raise InputError(f"batch_size: expected no more than the images, got {recipe.batch_size}; lower it")
        self.val = DataLoader(val, 64, num_workers=recipe.workers)
        self.step, self.steps = 0, max(1, round(recipe.epochs * len(self.loader)))
        self.best = -1.0
        self.rows: list[dict[str, Any]] = []

    def train(self, progress: bool) -> None:
        with tqdm(total=self.steps, initial=self.step, desc="fine-tune", unit="step", disable=not progress) as bar:
            while self.step < self.steps:
                started, epoch = time.perf_counter(), self.step // len(self.loader)
                loss = self._epoch(epoch, bar)
                if self.main:
                    accuracy = self._evaluate()
                    seconds = time.perf_counter() - started
                    self._record(self.step / len(self.loader), loss, accuracy, seconds)
                    bar.set_postfix_str(f"loss {loss:.3f}, Top-1 {accuracy.top1:.2f} %")
                if dist.is_initialized():
                    dist.barrier()

    def _epoch(self, epoch: int, bar: Any) -> float:
        self.sampler.set_epoch(epoch)
        self.model.train()
        total, count = 0.0, 0
        for images, labels in self.loader:
            loss = self._step(images.to(self.device), labels.to(self.device))
            total, count = total + loss, count + 1
            bar.update()
            if self.step >= self.steps:
                break
        return total / count

    def _step(self, images: Tensor, labels: Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        images = images.contiguous(memory_format=torch.channels_last)
        kind, dtype = torch.device(self.device).type, getattr(torch, self.recipe.amp)
        with torch.autocast(kind, dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32):
            logits, features = self.wrapped(images)
            loss = self._loss(logits.float(), features, images, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(f"step {self.step}: expected a finite loss, got {value}; lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return value

    def _loss(self, logits: Tensor, features: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        recipe = self.recipe
        smoothing = recipe.label_smoothing
        loss = (1 - recipe.distill) * F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing)
        if self.teacher is None or not (recipe.distill or recipe.features):
            return loss
        with torch.no_grad():
            wanted = self.teacher.forward_features(images)
            target = self.teacher.classify(wanted["res5"]).float()
        if recipe.distill:
            found, given = (F.log_softmax(part / recipe.temperature, 1) for part in (logits, target))
            divergence = F.kl_div(found, given, log_target=True, reduction="batchmean")
            loss = loss + recipe.distill * recipe.temperature**2 * divergence
        if recipe.features:
            stages = [name for name in features if name != "stem"]
            distances = [feature_distance(features[name], wanted[name]) for name in stages]
            loss = loss + recipe.features * torch.stack(distances).mean()
        return loss

    def _learning_rate(self) -> float:
        """Of the coming step: linear warm-up, then half a cosine."""
        warm = min(self.recipe.warmup_epochs * len(self.loader), 0.1 * self.steps)
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
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "step": self.step,
            "steps": self.steps,
            "recipe": asdict(self.recipe),
            "spec": self.model.spec.to_json(),
            "rows": self.rows,
        }
        with atomic_path(self.output / "last.pth") as temporary:
            torch.save(state, temporary)
        with atomic_path(self.output / "metrics.json") as temporary:
            report = {"recipe": asdict(self.recipe), "spec": self.model.spec.to_dict(), "epochs": self.rows}
            temporary.write_text(json.dumps(report, indent=1) + "\n")

    def load(self) -> None:
        """Take up ``last.pth``."""
        path = require_file(self.output / "last.pth", "the state of a fine-tuning to resume")
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            now: dict[str, Any] = {"steps": self.steps, "spec": self.model.spec.to_json(), **asdict(self.recipe)}
            then = {"steps": state["steps"], "spec": state["spec"], **state["recipe"]}
            for field in (field for field in now if field != "workers" and now[field] != then.get(field)):
                raise InputError(
                    f"{path}: {field}: expected {then.get(field)!r} as in the run to resume, got {now[field]!r}; "
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
        self.step, self.rows = state["step"], state["rows"]
        self.best = max((row["top1"] for row in self.rows), default=-1.0)


class _WithFeatures(nn.Module):
    """Logits and stage features in one forward, so that gradients of both are synchronised."""

    def __init__(self, model: NortonResNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.model.forward_features(images)
        return self.model.classify(features["res5"]), features


def feature_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Distance of two feature maps (N, C, H, W), (N, C', H, W), a scalar of order 1.

    With equal channels the squared error relative to the energy wanted; else that of the attention maps, the mean
    square over channels, each scaled to norm 1.
    """
    found, wanted = found.float(), wanted.float()
    if found.shape == wanted.shape:
        return (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)
    maps = [F.normalize(part.square().mean(1).flatten(1), dim=1) for part in (found, wanted)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def _decay_groups(model: nn.Module, weight_decay: float) -> Iterator[dict[str, Any]]:
    """Matrices decay; biases and normalisation do not (they hold the scale that a fit has set)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    yield {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay}
    yield {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}

"""What the studies share: weights and images, accuracy before and after a short fine-tuning."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from norton_det.checkpoint.load import load_weights
from norton_det.classification.accuracy import evaluate
from norton_det.classification.finetune import fine_tune
from norton_det.classification.recipe import Recipe
from norton_det.compression.calibration import Calibration
from norton_det.compression.report import CompressionReport
from norton_det.compression.resnet import compress
from norton_det.data.classes import ClassFolder
from norton_det.data.images import load_images
from norton_det.models.complexity import count_complexity
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

BATCH = 64


@dataclass(frozen=True)
class Settings:
    """Flags of tools/study.py that all studies have."""

    weights: str
    data: Path
    output: Path
    size: int | None
    resize: int | None
    images: int  # for calibration
    val_images: int | None  # None: all
    finetune_images: int
    train_size: int | None
    epochs: float
    batch_size: int
    learning_rate: float
    ema: float
    amp: str
    seeds: int


class Bench:
    """A trained dense network, calibration images by seed, and a validation set in memory."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loaded = load_weights(settings.weights)
        spec = self.loaded.spec
        if not (spec.is_dense and spec.arch == "resnet50" and self.loaded.num_classes):
            raise InputError(
                f"{settings.weights}: expected a dense ResNet-50 with fc, got {spec}; give its dense weights"
            )
        shape = {"size": settings.size, "resize": settings.resize}
        classes, preprocessing = self.loaded.num_classes, self.loaded.preprocessing
        val = ClassFolder(settings.data / "val", classes, preprocessing, **shape)
        crops = shape if settings.train_size is None else {"size": settings.train_size}
        self.train = ClassFolder(settings.data / "train", classes, preprocessing, augment=True, **crops)
        order = torch.randperm(len(val), generator=torch.Generator().manual_seed(0)).tolist()
        chosen = sorted(order[: settings.val_images])
        pairs = [val[index] for index in tqdm(chosen, "val images", leave=False)]
        images, labels = torch.stack([pair[0] for pair in pairs]), torch.tensor([pair[1] for pair in pairs])
        self.val = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
        self.shape = val.shape
        self.dense = self.loaded.build()
        self._calibration: dict[int, torch.Tensor] = {}

    def calibration(self, seed: int = 0, **switches: Any) -> Calibration:
        """Unlabelled training images of that seed, with switches."""
        if seed not in self._calibration:
            self._calibration[seed] = load_images(
                self.settings.data / "train",
                self.loaded.preprocessing,
                count=self.settings.images,
                size=self.settings.size,
                resize=self.settings.resize,
                seed=seed,
            )[0]
        return Calibration(self._calibration[seed], seed=seed, **switches)

    def compress(self, spec: CompressionSpec, **options: Any) -> tuple[NortonResNet, CompressionReport]:
        result = compress(self.dense, spec, **options)
        return result.model, result.report

    def accuracy(self, model: torch.nn.Module) -> float:
        """Top-1 in percent."""
        return evaluate(model, self.val).top1

    def tune(self, model: NortonResNet, seed: int = 0, teacher: bool = True, images: int | None = None) -> float:
        """Top-1 after a short fine-tuning on a random part of the training images; the model is changed."""
        count = min(images or self.settings.finetune_images, len(self.train))
        drawn = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[:count]
        recipe = Recipe(
            epochs=self.settings.epochs,
            learning_rate=self.settings.learning_rate,
            batch_size=min(self.settings.batch_size, count),
            distill=0.5 if teacher else 0.0,
            features=1.0 if teacher else 0.0,
            ema=self.settings.ema,
            amp=self.settings.amp,
            workers=1,
            seed=seed,
        )
        with tempfile.TemporaryDirectory() as folder:
            val = _Pairs(self.val)
            teaching = self.dense if teacher else None
            rows = fine_tune(model, Subset(self.train, drawn.tolist()), val, recipe, folder, teacher=teaching)
        return rows[-1]["top1"]


class _Pairs(Dataset):
    """Batches in memory, one pair at a time."""

    def __init__(self, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.images = [image for images, _ in batches for image in images]
        self.labels = [int(label) for _, labels in batches for label in labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], self.labels[index]


def macs_of(spec: CompressionSpec) -> int:
    """At 224 x 224, with 1000 classes."""
    with torch.device("meta"):
        return count_complexity(NortonResNet(spec)).macs


def ratio_for(target: float, rank: int | None) -> CompressionSpec:
    """The spec of that rank with one ratio for all but the stem whose MACs are closest to ``target``."""
    low, high = 0.0, 0.95
    for _ in range(14):
        middle = (low + high) / 2
        spec = CompressionSpec.parse(rank, f"[0.]+[{middle:.5f}]*19")
        low, high = (middle, high) if macs_of(spec) > target else (low, middle)
    spec = CompressionSpec.parse(rank, f"[0.]+[{high:.4f}]*19")
    return replace(spec, name=f"rank {rank}, ratio {high:.3f}")


def timed(function: Any, *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Result and seconds."""
    started = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - started

"""The settings of the fine-tuning stage; the paper's by default (NORTON, section IV)."""

import math
from dataclasses import dataclass

from ..utils.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.

    Attributes:
        epochs: passes over the data; fractions are allowed.
        learning_rate: at its peak, for the whole batch.
        batch_size: images of all processes together.
        warmup_epochs: linear rise of the learning rate; at most a tenth of the run.
        momentum, weight_decay, label_smoothing: as named.
        distill: weight of the teacher's logits; labels keep ``1 - distill``.
        temperature: of the distilled logits.
        features: weight of the teacher's stage features.
        ema: decay of the averaged weights that are evaluated and kept; 0 for none.
        amp: float32, bfloat16 or float16.
        workers: processes that read images, for each process.
        seed: of order, augmentation and everything else random.
    """

    epochs: float = 100.0
    learning_rate: float = 0.01
    batch_size: int = 128
    warmup_epochs: float = 5.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    distill: float = 0.0
    temperature: float = 1.0
    features: float = 0.0
    ema: float = 0.0
    amp: str = "float32"
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        share, positive, least = "0 to less than 1", "more than 0", "0 or more"
        checks = {
            "epochs": (0 < self.epochs < math.inf, positive),
            "learning_rate": (0 < self.learning_rate < math.inf, positive),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "warmup_epochs": (self.warmup_epochs >= 0, least),
            "momentum": (0 <= self.momentum < 1, share),
            "weight_decay": (self.weight_decay >= 0, least),
            "label_smoothing": (0 <= self.label_smoothing < 1, share),
            "distill": (0 <= self.distill <= 1, "0 to 1"),
            "temperature": (self.temperature > 0, positive),
            "features": (self.features >= 0, least),
            "ema": (0 <= self.ema < 1, share),
            "amp": (self.amp in ("float32", "bfloat16", "float16"), "float32, bfloat16 or float16"),
            "workers": (self.workers >= 0, least),
            "seed": (0 <= self.seed < 2**32, f"0 to {2**32 - 1}"),
        }
        for field, (good, expected) in checks.items():
            if not good:
                raise InputError(f"recipe: {field}: expected {expected}, got {getattr(self, field)!r}; change it")

"""What a network expects at its input. It is part of the weights: a mismatch changes no shape and is silent."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..utils.errors import InputError


@dataclass(frozen=True)
class Preprocessing:
    """Colour order and normalisation of the input, ``(pixel - mean) / std`` with pixels in 0..255.

    Attributes:
        color: "RGB" or "BGR".
        mean, std: per channel, in that colour order, in units of pixels.
    """

    color: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.color not in ("RGB", "BGR"):
            raise InputError(f"preprocessing: color: expected RGB or BGR, got {self.color!r}; use one of them")
        for field in ("mean", "std"):
            values = getattr(self, field)
            numeric = isinstance(values, list | tuple) and all(_is_number(value) for value in values)
            if not numeric or len(values) != 3:
                raise InputError(f"preprocessing: {field}: expected 3 numbers, got {values!r}; give one per channel")
            object.__setattr__(self, field, tuple(float(value) for value in values))
        if any(value <= 0 for value in self.std):
            raise InputError(f"preprocessing: std: expected positive numbers, got {self.std}; use 1 for no scaling")

    def close_to(self, other: "Preprocessing") -> bool:
        """Whether both agree up to rounding (half a grey level of mean, 1 % of std)."""
        means = all(abs(a - b) <= 0.5 for a, b in zip(self.mean, other.mean, strict=True))
        stds = all(abs(a - b) <= 0.01 * a for a, b in zip(self.std, other.std, strict=True))
        return self.color == other.color and means and stds

    def __str__(self) -> str:
        return f"{self.color} mean {list(self.mean)} std {list(self.std)}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Preprocessing":
        if not isinstance(fields, dict) or set(fields) != {"color", "mean", "std"}:
            raise InputError(f"preprocessing: expected the fields color, mean, std, got {fields!r}; write all three")
        return cls(**fields)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


TORCHVISION = Preprocessing("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""torchvision's ImageNet weights (mean 0.485 0.456 0.406, std 0.229 0.224 0.225 times 255)."""

MSRA = Preprocessing("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
"""Detectron2's ``ImageNetPretrained/MSRA/R-50.pkl``; its network has the stride in the 1x1 convolutions."""

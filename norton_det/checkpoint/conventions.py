"""What a network expects at its input and where its stride sits: neither can be seen in its tensors.

They follow, the first that is there, from what OpenMMLab's files say of their config, from pixel statistics among the
tensors, or from the origin: Caffe's and Detectron2's detectors are MSRA's, all else is torchvision's.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..models.detector_keys import split_prefix
from ..models.keys import ResNetPart
from ..models.preprocessing import MSRA, TORCHVISION, Preprocessing
from ..utils.errors import InputError

_MOST_TEXT = 5_000_000  # characters of a config that are looked at
_STATEMENT = re.compile(  # key = value or "key": value, of Python, JSON and YAML
    r"""\b(style|mean|std|to_rgb|bgr_to_rgb)["']?\s{0,9}[=:]\s{0,9}(["']\w{1,20}["']|[\[(][^\[\]()]{0,200}[\])]|\w{1,5})"""
)
_MEND = "load it by norton_det.checkpoint.load.load_weights with preprocessing and stride_in_1x1 of your own"


def conventions(
    resnet: ResNetPart, around: Mapping[str, Any], fields: Mapping[str, Any]
) -> tuple[Preprocessing, bool, bool]:
    """Preprocessing and stride_in_1x1 of a ResNet, and whether nothing in the file but names says so.

    Args:
        resnet: as it was found.
        around: the tensors of its detector outside of it.
        fields: what stands beside the tensors.

    Raises:
        InputError: the config in the file says two things, or only half of what has to be known.
    """
    if (stated := _of_openmmlab(fields.get("meta"))) is not None:
        return *stated, False
    mean, std = (pixel_values(around.get(field)) for field in ("pixel_mean", "pixel_std"))
    for known in (MSRA, TORCHVISION):
        if _close(mean, known.mean) and _close(std, known.std):
            return known, known == MSRA and resnet.naming != "torchvision", False
    author = fields.get("__author__")
    author = author[:200].lower() if isinstance(author, str) else ""
    by_msra = resnet.naming == "caffe2" or re.search("caffe2|msra", author) is not None
    in_detector = split_prefix(resnet.prefix)[1] != ""
    zoo_detector = resnet.naming == "detectron2" and in_detector and "torchvision" not in author
    return (MSRA, True, not by_msra) if by_msra or zoo_detector else (TORCHVISION, False, True)


def _of_openmmlab(meta: object) -> tuple[Preprocessing, bool] | None:
    """What the config in ``meta`` says, where OpenMMLab's programs keep it; ``None`` without, or if it says nothing.

    The config is text, which is searched and never run, or dicts.
    """
    if not isinstance(meta, dict):
        return None
    config = meta.get("config", meta.get("cfg"))
    pairs = _in_text(config[:_MOST_TEXT]) if isinstance(config, str) else _in_dicts(config)
    said: dict[str, list[Any]] = {}
    for key, value in pairs:
        values = said.setdefault(key, [])
        if value is not None and value not in values:
            values.append(value)
    for key, values in said.items():
        if len(values) > 1:
            raise InputError(f"meta: config: expected one {key}, got {values[0]} and {values[1]}; {_MEND}")
    mean, std, style = (next(iter(said.get(key, ())), None) for key in ("mean", "std", "style"))
    if mean is None and std is None:
        return None
    to_rgb = next(iter(said.get("to_rgb", said.get("bgr_to_rgb", ()))), None)
    if mean is None or std is None or to_rgb is None:
        raise InputError(f"meta: config: expected mean, std and to_rgb, got not all of them; {_MEND}")
    return Preprocessing("RGB" if to_rgb else "BGR", mean, std), style == "caffe"


def _in_text(text: str) -> Iterator[tuple[str, Any]]:
    for key, value in _STATEMENT.findall(text):
        yield key, _as_value(key, value.strip("\"'[]()"))


def _in_dicts(config: object, depth: int = 12) -> Iterator[tuple[str, Any]]:
    if isinstance(config, dict) and depth:
        for key, value in config.items():
            if key in ("style", "mean", "std", "to_rgb", "bgr_to_rgb"):
                listed = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
                yield key, _as_value(key, listed)
            else:
                yield from _in_dicts(value, depth - 1)
    elif isinstance(config, list | tuple) and depth:
        for value in config:
            yield from _in_dicts(value, depth - 1)


def _as_value(key: str, text: str) -> Any:
    """A style, a triple of numbers or a truth; ``None`` for what is none."""
    if key == "style":
        return text if text in ("caffe", "pytorch") else None
    if key in ("mean", "std"):
        try:
            numbers = tuple(float(number) for number in text.split(",") if number.strip())
        except ValueError:
            return None
        return numbers if len(numbers) == 3 else None
    return {"true": True, "false": False}.get(text.lower())


def pixel_values(tensor: object) -> tuple[float, float, float] | None:
    """The numbers of a stored mean or standard deviation of pixels; ``None`` of what is none."""
    if not isinstance(tensor, Tensor) or tensor.numel() != 3:
        return None
    first, second, third = tensor.detach().flatten().tolist()
    return first, second, third


def _close(values: tuple[float, ...] | None, known: tuple[float, float, float]) -> bool:
    return values is not None and all(abs(a - b) < 0.01 for a, b in zip(values, known, strict=True))

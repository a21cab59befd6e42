"""A torchvision detector's file: safetensors that carries what its builder needs, so nothing has to be repeated.

Its description is that of the backbone as in ``norton_det.checkpoint.checkpoint`` (0 classes), with one field more::

    "detector": {"kind": "keypoint", "num_classes": 2, "num_keypoints": 17}

Test-time settings (thresholds, image sizes) are not weights and are not stored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint.checkpoint import read_info, read_tensors
from ..checkpoint.tensor_file import read_fields, write_tensors
from ..models.description import NetworkInfo
from ..models.state import load_state
from ..utils.errors import InputError

DETECTOR_KEY = "detector"
KINDS = ("faster", "mask", "keypoint")


@dataclass(frozen=True)
class DetectorInfo:
    """What a detector is, beside the settings of its test time.

    Attributes:
        kind: faster, mask or keypoint.
        backbone: spec, preprocessing and place of the stride; its ``num_classes`` is 0.
        num_classes: with the background, as torchvision counts.
        num_keypoints: of a keypoint detector, else ``None``.
    """

    kind: str
    backbone: NetworkInfo
    num_classes: int
    num_keypoints: int | None = None


def save_detector(path: str | Path, model: nn.Module) -> Path:
    """Write a detector of this package's builders; ``weights=path`` of the same builder reads it back.

    Raises:
        InputError: another model, or the file cannot be written.
    """
    info = getattr(model, "norton_info", None)
    if not isinstance(info, DetectorInfo):
        raise InputError(f"{path}: expected a detector of norton_det.tv, got {type(model).__name__}; build it there")
    fields = {"kind": info.kind, "num_classes": info.num_classes, "num_keypoints": info.num_keypoints}
    return write_tensors(path, model.state_dict(), info.backbone.to_fields() | {DETECTOR_KEY: fields})


def is_detector_file(path: str | Path) -> bool:
    """Whether a safetensors file is of ``save_detector``.

    Raises:
        InputError: missing, or no safetensors file.
    """
    return DETECTOR_KEY in (read_fields(path)[0] or {})


def read_detector_info(path: str | Path) -> DetectorInfo:
    """What a detector's file says of itself.

    Raises:
        InputError: not such a file, or damaged.
    """
    backbone = read_info(path)
    fields: Any = (read_fields(path)[0] or {}).get(DETECTOR_KEY)
    if backbone is None or fields is None:
        mend = "give a backbone as weights_backbone" if backbone else "write one with norton_det.tv.save_detector"
        raise InputError(f"{path}: expected a detector of norton_det.tv, got other weights; {mend}")
    try:
        kind, classes, keypoints = (fields[name] for name in ("kind", "num_classes", "num_keypoints"))
    except (TypeError, KeyError) as error:
        raise InputError(f"{path}: metadata of the detector is damaged ({error!r}); write the file again") from None
    if kind not in KINDS:
        raise InputError(f"{path}: kind: expected one of {', '.join(KINDS)}, got {kind!r}; update norton_det")
    if not _is_size(classes) or not (_is_size(keypoints) if kind == "keypoint" else keypoints is None):
        raise InputError(
            f"{path}: num_classes, num_keypoints: expected positive numbers for {kind}, "
            f"got {classes!r}, {keypoints!r}; write the file again"
        )
    least = 2 * (5 * 1024 * classes + 512 * 16 * (keypoints or 0))  # bytes of the last layers in half precision
    if least > Path(path).stat().st_size:
        raise InputError(f"{path}: num_classes, num_keypoints: expected what the file holds, got more; get it again")
    return DetectorInfo(kind, backbone, classes, keypoints)


def load_detector_state(model: nn.Module, path: str | Path) -> None:
    """Load a detector's tensors by name, all or none.

    Raises:
        InputError: names or shapes differ.
    """
    load_state(model, read_tensors(path), str(path))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1_000_000

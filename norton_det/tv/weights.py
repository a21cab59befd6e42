"""A torchvision detector's file: safetensors that carries what its builder needs, so nothing has to be repeated.

Its description is that of the backbone as in ``norton_det.models.description`` (0 classes), with one field more::

    "detector": {"kind": "keypoint", "num_classes": 2, "num_keypoints": 17}

Test-time settings (thresholds, image sizes) are not weights and are not stored.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ..checkpoint.opened import OpenedWeights, open_weights
from ..checkpoint.tensor_file import write_tensors
from ..models.description import NetworkInfo
from ..utils.errors import InputError

DETECTOR_KEY = "detector"


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

    def to_fields(self) -> dict[str, str | int | None]:
        """What a file says of it beside the backbone, as JSON has it."""
        return {"kind": self.kind, "num_classes": self.num_classes, "num_keypoints": self.num_keypoints}


def save_detector(path: str | Path, model: nn.Module) -> Path:
    """Write a detector of this package's builders; ``weights=path`` of the same builder reads it back.

    Raises:
        InputError: another model, or the file cannot be written.
    """
    info = getattr(model, "norton_info", None)
    if not isinstance(info, DetectorInfo):
        raise InputError(f"{path}: expected a detector of norton_det.tv, got {type(model).__name__}; build it there")
    return write_tensors(path, model.state_dict(), info.backbone.to_fields() | {DETECTOR_KEY: info.to_fields()})


def is_detector_file(path: str | Path) -> bool:
    """Whether a file is of ``save_detector``.

    Raises:
        InputError: missing, or no weights.
    """
    return DETECTOR_KEY in open_weights(path).fields


def read_detector_info(source: str | Path | OpenedWeights) -> DetectorInfo:
    """What a file of ``save_detector`` says of its detector.

    Raises:
        InputError: not such a file, damaged, or it says other numbers than its tensors have.
    """
    opened = open_weights(source)
    if opened.described is None or DETECTOR_KEY not in opened.fields:
        mend = "give a backbone as weights_backbone" if opened.described else "write one with save_detector"
        raise InputError(f"{opened.source}: expected a detector of norton_det.tv, got other weights; {mend}")
    info, fields = describe_detector(opened), opened.fields[DETECTOR_KEY]
    if fields != info.to_fields():
        raise InputError(
            f"{opened.source}: detector: expected {info.to_fields()}, as its tensors have, got {fields!r:.80}; write "
            "the file again"
        )
    return info


def describe_detector(opened: OpenedWeights) -> DetectorInfo:
    """What detector of torchvision's is in a file, by its tensors.

    Raises:
        InputError: none, or one without its heads.
    """
    if opened.family is not None:
        raise InputError(
            f"{opened.source}: expected a detector of torchvision, got {opened.family.name}; {opened.family.mend}"
        )
    if opened.stack != "torchvision":
        raise InputError(
            f"{opened.source}: expected a detector of torchvision, got other weights; for one of Detectron2 give "
            "--config"
        )
    heads = opened.around
    predictors = [kind for kind in ("keypoint", "mask") if any(f"roi_heads.{kind}_predictor" in name for name in heads)]
    kind = next(iter(predictors), "faster")
    scores = heads.get("roi_heads.box_predictor.cls_score.weight")
    heatmaps = heads.get("roi_heads.keypoint_predictor.kps_score_lowres.weight")  # (inputs, K, 4, 4)
    if scores is None or not scores.ndim or (kind == "keypoint" and (heatmaps is None or heatmaps.ndim != 4)):
        raise InputError(f"{opened.source}: expected the heads of a {kind} R-CNN, got none; use the whole state dict")
    backbone = replace(opened.info, num_classes=0)
    return DetectorInfo(kind, backbone, len(scores), None if heatmaps is None else heatmaps.shape[1])

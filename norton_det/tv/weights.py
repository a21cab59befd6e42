"""What a torchvision detector is, as its file says it, so that nothing has to be repeated where it is loaded.

The file is safetensors; its description is that of the backbone as in ``norton_det.models.description`` (0 classes),
with one field more::

    "detector": {"kind": "keypoint", "num_classes": 2, "num_keypoints": 17, "settings": {...}, "labels": {...}}

``settings`` are those of ``tv.settings``, ``labels`` those of ``models.labels``. Files of older versions have neither,
and are read with torchvision's defaults, as state dicts of torchvision's own are.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, KeypointRCNN_ResNet50_FPN_Weights

from ..checkpoint.opened import DETECTOR_KEY, OpenedWeights, open_weights
from ..models.description import NetworkInfo
from ..models.labels import Labels
from ..utils.errors import InputError, naming
from .second_version import is_second_version
from .settings import BOX_HEAD, FPN, FPN_ANCHORS, VERSION, Settings, check_settings

logger = logging.getLogger(__name__)
COCO_OUTPUTS, PERSON_OUTPUTS, PERSON_KEYPOINTS = 91, 2, 17  # of torchvision's own detectors


@dataclass(frozen=True)
class DetectorInfo:
    """What a detector is.

    Attributes:
        kind: faster, mask or keypoint.
        backbone: spec, preprocessing and place of the stride; its ``num_classes`` is 0.
        num_classes: with the background, as torchvision counts.
        num_keypoints: of a keypoint detector, else ``None``.
        settings: see ``tv.settings``; torchvision's defaults for what is not in it.
        labels: what the outputs stand for, as far as it is known.
    """

    kind: str
    backbone: NetworkInfo
    num_classes: int
    num_keypoints: int | None = None
    settings: Settings = field(default_factory=dict, compare=False)
    labels: Labels = field(default=Labels(), compare=False)

    def numbers(self) -> dict[str, str | int | None]:
        """What the tensors alone tell."""
        return {"kind": self.kind, "num_classes": self.num_classes, "num_keypoints": self.num_keypoints}

    def to_fields(self) -> dict[str, Any]:
        """What a file says of it beside the backbone, as JSON has it."""
        return self.numbers() | {"settings": self.settings, "labels": self.labels.to_fields()}


def is_detector_file(path: str | Path | OpenedWeights) -> bool:
    """Whether a file is of ``save_detector``.

    Raises:
        InputError: missing, or no weights.
    """
    fields = open_weights(path).fields.get(DETECTOR_KEY)
    return isinstance(fields, dict) and "kind" in fields


def read_detector_info(source: str | Path | OpenedWeights) -> DetectorInfo:
    """What a file of ``save_detector`` says of its detector.

    Raises:
        InputError: not such a file, damaged, or it says other numbers than its tensors have.
    """
    opened = open_weights(source)
    if opened.described is None or DETECTOR_KEY not in opened.fields:
        mend = "give a backbone as weights_backbone" if opened.described else "write one with save_detector"
        raise InputError(f"{opened.source}: expected a detector of norton_det.tv, got other weights; {mend}")
    info, fields = describe_tensors(opened), opened.fields[DETECTOR_KEY]
    numbers = {name: fields.get(name) for name in info.numbers()} if isinstance(fields, dict) else None
    if numbers != info.numbers() or list(map(type, numbers.values())) != list(map(type, info.numbers().values())):
        raise InputError(
            f"{opened.source}: detector: expected {info.numbers()}, as its tensors have, got {fields!r:.80}; write "
            "the file again"
        )
    settings = check_settings(fields.get("settings", {}), opened.source)
    with naming(opened.source):
        labels = Labels.from_fields(fields.get("labels", {}))
    labels.check(opened.source, info.num_classes - 1, info.num_keypoints)
    return replace(info, settings=info.settings | settings, labels=labels if fields.get("labels") else info.labels)


def describe_detector(opened: OpenedWeights) -> DetectorInfo:
    """What detector of torchvision's is in a file: as the file says, else by its tensors; what is assumed is told.

    Raises:
        InputError: none, or one without its heads.
    """
    if is_detector_file(opened):
        return read_detector_info(opened)
    info = describe_tensors(opened)
    known = f"with the names of COCO's {'keypoints' if info.labels.keypoints else 'categories'}"
    logger.warning(
        "%s does not say what pictures and classes it is for: it gets torchvision's sizes, anchors and thresholds, %s",
        opened.source,
        known if info.labels.classes else "its classes without names",
    )
    return info


def describe_tensors(opened: OpenedWeights) -> DetectorInfo:
    """What detector of torchvision's is in a file, by its tensors alone.

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
    anchors = heads.get("rpn.head.cls_logits.weight")
    if anchors is not None and anchors.ndim and len(anchors) != FPN_ANCHORS and DETECTOR_KEY not in opened.fields:
        raise InputError(
            f"{opened.source}: expected torchvision's {FPN_ANCHORS} anchors of a cell, got {len(anchors)}, and no word "
            "of their sizes; save the detector itself with norton_det.save_checkpoint"
        )
    backbone = replace(opened.info, num_classes=0)
    keypoints = None if heatmaps is None else heatmaps.shape[1]
    return DetectorInfo(kind, backbone, len(scores), keypoints, _widths(heads), coco_labels(len(scores), keypoints))


def coco_labels(num_classes: int, num_keypoints: int | None) -> Labels:
    """Labels of a detector with as many outputs as torchvision's own, which number them by COCO's category ids."""
    if num_classes == COCO_OUTPUTS and num_keypoints is None:
        names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
        gaps = [name == "N/A" for name in names]
        return Labels(
            tuple("" if gap else name for name, gap in zip(names, gaps, strict=True)),
            tuple(None if gap else index for index, gap in enumerate(gaps, start=1)),
            assumed=True,
        )
    if num_classes == PERSON_OUTPUTS and num_keypoints == PERSON_KEYPOINTS:
        points = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta["keypoint_names"]
        return Labels(("person",), (1,), tuple(points), assumed=True)
    return Labels()


def _widths(heads: dict[str, Tensor]) -> Settings:
    """Widths of FPN and box head, and torchvision's version, which a builder has to know."""
    widths: Settings = {VERSION: 2} if is_second_version(heads) else {}
    for setting, name in ((FPN, "rpn.head.cls_logits.weight"), (BOX_HEAD, "roi_heads.box_predictor.cls_score.weight")):
        if (tensor := heads.get(name)) is not None and tensor.ndim >= 2:
            widths[setting] = tensor.shape[1]
    return widths

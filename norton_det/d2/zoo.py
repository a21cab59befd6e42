"""Detectors of Detectron2's model zoo and its like, whose files hold tensors alone: their config by names and shapes.

Widths, depths, heads, classes and keypoints are seen in the tensors. Sizes of pictures, anchors, numbers of proposals
and thresholds are not; they are taken to be those of every R-CNN with FPN of the zoo, which is told.
"""

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from detectron2.data import MetadataCatalog
from torch import Tensor

from ..checkpoint.opened import OpenedWeights
from ..models.labels import Labels
from ..utils.errors import InputError

logger = logging.getLogger(__name__)
ANCHORS = 3  # of a cell, in every R-CNN with FPN of the zoo
_NUMBERED = re.compile(r".+\.conv\d+(\.pointwise)?\.weight")  # convolutions of an RPN with several
_COCO = {(80, 0): "coco_2017_val", (1, 17): "keypoints_coco_2017_val"}  # classes, keypoints -> whose names


def config_of_tensors(opened: OpenedWeights) -> dict[str, Any]:
    """Keys of the config of a detector with FPN that Detectron2's names belong to; what is assumed is told.

    Raises:
        InputError: another kind of detector, or one without its heads.
    """
    heads, info = opened.around, opened.info
    rpn = [name for name in heads if name.startswith("proposal_generator.rpn_head.conv.")]
    scores = _scores(heads)
    if scores is None:
        raise InputError(f"{opened.source}: expected a whole detector, got no box head; use the file of a detector")
    if "backbone.fpn_lateral2.weight" not in heads or not rpn:
        raise InputError(f"{opened.source}: expected an R-CNN with FPN, got another detector; give --config")
    anchors = len(heads.get("proposal_generator.rpn_head.objectness_logits.weight", ()))
    if anchors != ANCHORS:
        raise InputError(
            f"{opened.source}: expected {ANCHORS} anchors of a cell, got {anchors}, and no word of their sizes; "
            "give --config"
        )
    architecture = info.spec.architecture
    keys: dict[str, Any] = {
        "MODEL.BACKBONE.NAME": "build_norton_resnet_fpn_backbone",
        "MODEL.RESNETS.DEPTH": int(info.spec.arch.removeprefix("resnet")),
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.RES2_OUT_CHANNELS": architecture.outputs[0],
        "MODEL.RESNETS.STRIDE_IN_1X1": info.stride_in_1x1,
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": len(heads["backbone.fpn_lateral2.weight"]),
        "MODEL.FPN.NORM": _norm(heads, "backbone.fpn_lateral2.norm."),
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.RPN.CONV_DIMS": [-1]
        * max(1, sum(re.fullmatch(r".+\.conv\d+(\.pointwise)?\.weight", name) is not None for name in rpn)),
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
        "INPUT.FORMAT": info.preprocessing.color,
        "MODEL.PIXEL_MEAN": list(info.preprocessing.mean),
        "MODEL.PIXEL_STD": list(info.preprocessing.std),
    }
    keys |= _box_head(heads, scores) | _mask_head(heads, scores) | _keypoint_head(heads)
    logger.warning(
        "%s does not say what pictures it is for: read as the R-CNNs with FPN of Detectron2's zoo (%s, short sides of "
        "800 pixels, anchors of 32 to 512); give --config if it was trained otherwise",
        opened.source,
        info.preprocessing,
    )
    return keys


def labels_of_tensors(opened: OpenedWeights) -> Labels:
    """COCO's labels for a detector with as many classes and keypoints as those of the zoo; else none."""
    heads = opened.around
    scores = _scores(heads)
    heatmaps = heads.get("roi_heads.keypoint_head.score_lowres.weight")
    keypoints = heatmaps.shape[1] if heatmaps is not None and heatmaps.ndim == 4 else 0
    name = _COCO.get((len(scores) - 1, keypoints)) if scores is not None else None
    if name is None:
        return Labels()
    metadata = MetadataCatalog.get(name)
    persons = {1: 0}  # of the data set of keypoints, whose metadata has no ids
    ids = {index: number for number, index in metadata.get("thing_dataset_id_to_contiguous_id", persons).items()}
    logger.warning("%s does not name its classes: taken for COCO's %d", opened.source, len(ids))
    return Labels(
        tuple(metadata.thing_classes),
        tuple(ids[index] for index in sorted(ids)),
        tuple(metadata.get("keypoint_names", ())),
        assumed=True,
    )


def _stage(heads: Mapping[str, Tensor]) -> str:
    """What stands before the names of a box head's layers: the number of a cascade's first stage, or nothing."""
    return ".0" if "roi_heads.box_predictor.0.cls_score.weight" in heads else ""


def _scores(heads: Mapping[str, Tensor]) -> Tensor | None:
    """The weights (classes + 1, inputs) of the scores of classes."""
    scores = heads.get(f"roi_heads.box_predictor{_stage(heads)}.cls_score.weight")
    return scores if scores is not None and scores.ndim == 2 else None


def _box_head(heads: Mapping[str, Tensor], scores: Tensor) -> dict[str, Any]:
    """Keys of the box head, plain or a cascade."""
    stage = _stage(heads)
    boxes = heads.get(f"roi_heads.box_predictor{stage}.bbox_pred.weight", scores)
    head = f"roi_heads.box_head{stage}."
    linear = {int(match[1]): tensor for name, tensor in heads.items() if (match := _layer(name, head, "fc"))}
    convs = {int(match[1]): tensor for name, tensor in heads.items() if (match := _layer(name, head, "conv"))}
    fpn = len(heads["backbone.fpn_lateral2.weight"])
    channels = convs[2].shape[1] if 2 in convs else len(convs[1]) if 1 in convs else fpn
    inputs = linear[1].shape[1] if 1 in linear else 0
    side = math.isqrt(inputs // channels) if inputs else 7
    return {
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads" if stage else "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.ROI_HEADS.NUM_CLASSES": len(scores) - 1,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": len(linear),
        "MODEL.ROI_BOX_HEAD.FC_DIM": scores.shape[1],
        "MODEL.ROI_BOX_HEAD.NUM_CONV": len(convs),
        "MODEL.ROI_BOX_HEAD.CONV_DIM": channels,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": side,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": bool(stage) or (len(boxes) == 4 and len(scores) > 2),
        "MODEL.ROI_BOX_HEAD.NORM": _norm(heads, f"{head}conv1.norm."),
    }


def _mask_head(heads: Mapping[str, Tensor], scores: Tensor) -> dict[str, Any]:
    names = [name for name in heads if _layer(name, "roi_heads.mask_head.", "mask_fcn")]
    if not any(name.startswith("roi_heads.mask_head.") for name in heads):
        return {}
    predictor, upsampled = (heads.get(f"roi_heads.mask_head.{name}.weight") for name in ("predictor", "deconv"))
    return {
        "MODEL.MASK_ON": True,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": len(names),
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 256 if upsampled is None else upsampled.shape[0],
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": predictor is not None and len(predictor) == 1 and len(scores) > 2,
        "MODEL.ROI_MASK_HEAD.NORM": _norm(heads, "roi_heads.mask_head.mask_fcn1.norm."),
    }


def _keypoint_head(heads: Mapping[str, Tensor]) -> dict[str, Any]:
    heatmaps = heads.get("roi_heads.keypoint_head.score_lowres.weight")  # (inputs, K, 4, 4)
    if heatmaps is None or heatmaps.ndim != 4:
        return {}
    inputs = {
        int(match[1]): tensor.shape[1]
        for name, tensor in heads.items()
        if (match := _layer(name, "roi_heads.keypoint_head.", "conv_fcn"))
    }
    widths = [inputs[number] for number in sorted(inputs)]
    return {
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": heatmaps.shape[1],
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [*widths[1:], heatmaps.shape[0]],
        "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 14,
    }


def _layer(name: str, head: str, layer: str) -> re.Match[str] | None:
    """A weight of a numbered layer of a head, also of one that is factored (the first factor has its inputs)."""
    return re.fullmatch(rf"{re.escape(head)}{layer}(\d+)(?:\.(?:pointwise|first))?\.weight", name)


def _norm(heads: Mapping[str, Tensor], prefix: str) -> str:
    if f"{prefix}weight" not in heads:
        return ""
    return "BN" if f"{prefix}running_mean" in heads else "GN"

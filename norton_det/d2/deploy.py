"""A Detectron2 R-CNN taken apart for the graph of the deployment, and pictures resized as Detectron2 does."""

import numpy as np
import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.layers import ROIAlign
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import (
    BaseKeypointRCNNHead,
    BaseMaskRCNNHead,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from torch import Tensor, nn

from ..models.input_size import input_size
from ..models.preprocessing import Preprocessing
from ..models.rcnn import BoxRule, Head, PoolRule, ProposalRule, RCNNParts
from ..utils.errors import InputError

ALL = 1 << 20  # detections of an image, where TEST.DETECTIONS_PER_IMAGE is negative: no limit


class Maps(nn.Module):
    """A backbone that gives the maps of these names as a list."""

    def __init__(self, backbone: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.backbone(x)
        return [maps[name] for name in self.names]


class Layers(nn.Module):
    """The layers of a mask or keypoint head, without its losses and its inference."""

    def __init__(self, head: BaseMaskRCNNHead | BaseKeypointRCNNHead) -> None:
        super().__init__()
        self.head: BaseMaskRCNNHead | BaseKeypointRCNNHead = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head.layers(x)


def parts_of(detector: GeneralizedRCNN, preprocessing: Preprocessing, divisor: int) -> RCNNParts:
    """The detector taken apart; layers are shared with it.

    Raises:
        InputError: another kind of RPN, anchors, heads or poolers than the R-CNN family with FPN has.
    """
    rpn, heads = detector.proposal_generator, detector.roi_heads
    for what, module, kind in (("detector", detector, GeneralizedRCNN), ("proposal_generator", rpn, RPN)):
        _require(what, module, kind)
    _require("roi_heads", heads, StandardROIHeads)
    _require("anchor_generator", rpn.anchor_generator, DefaultAnchorGenerator)
    predictor = heads.box_predictor
    _require("box_predictor", predictor, FastRCNNOutputLayers)
    if getattr(predictor, "use_sigmoid_ce", False):
        raise InputError("box_predictor: expected softmax scores, got sigmoid ones; deploy it yourself")
    rule = ProposalRule(
        rpn.pre_nms_topk[False],
        rpn.post_nms_topk[False],
        rpn.nms_thresh,
        rpn.min_box_size,
        weights=tuple(rpn.box2box_transform.weights),
        strides=tuple(rpn.anchor_generator.strides),
        offset=rpn.anchor_generator.offset,
    )
    boxes = BoxRule(
        predictor.test_score_thresh,
        predictor.test_nms_thresh,
        predictor.test_topk_per_image if predictor.test_topk_per_image >= 0 else ALL,
        0.0,
        tuple(predictor.box2box_transform.weights),
        background=-1,
        agnostic=predictor.bbox_pred.out_features == len(predictor.box2box_transform.weights),
    )
    order = list(rpn.in_features)
    head = {"box": _head(heads, "box", nn.Sequential(heads.box_head, predictor), order)}
    for name in ("mask", "keypoint"):
        if getattr(heads, f"{name}_on"):
            head[name] = _head(heads, name, Layers(getattr(heads, f"{name}_head")), order)
    return RCNNParts(
        Maps(detector.backbone, order),
        rpn.rpn_head,
        list(rpn.anchor_generator.cell_anchors),
        rule,
        head["box"],
        boxes,
        head.get("mask"),
        head.get("keypoint"),
        preprocessing,
        divisor,
    )


def _head(heads: nn.Module, name: str, layers: nn.Module, order: list[str]) -> Head:
    pooler, used = getattr(heads, f"{name}_pooler"), getattr(heads, f"{name}_in_features")
    if pooler is None or not all(isinstance(level, ROIAlign) for level in pooler.level_poolers):
        raise InputError(f"{name}_pooler: expected RoIAlign, got another pooling; set POOLER_TYPE to ROIAlignV2")
    if missing := [map_name for map_name in used if map_name not in order]:
        raise InputError(f"{name}_pooler: expected maps that the RPN reads too, got {missing[0]}; add it to the RPN's")
    first = pooler.level_poolers[0]
    rule = PoolRule(
        tuple(first.output_size),
        tuple(level.spatial_scale for level in pooler.level_poolers),
        first.sampling_ratio,
        first.aligned,
        (pooler.canonical_box_size, pooler.canonical_level),
        (0.0, 1e-8),
    )
    return Head(rule, layers, levels=tuple(order.index(map_name) for map_name in used))


def _require(what: str, module: nn.Module, kind: type) -> None:
    if not isinstance(module, kind):
        raise InputError(f"{what}: expected {kind.__name__}, got {type(module).__name__}; deploy it yourself")


def resize(image: Tensor, min_size: int, max_size: int) -> Tensor:
    """An image (3, H, W) in 0..255 as Detectron2's ``ResizeShortestEdge`` resizes it, with Pillow, on whole numbers: to
    the (3, h, w) of ``input_size``.
    """
    old = (image.shape[1], image.shape[2])
    new = input_size(*old, min_size, max_size)
    if new == old:
        return image
    pixels = ResizeTransform(*old, *new).apply_image(image.byte().permute(1, 2, 0).numpy())
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()

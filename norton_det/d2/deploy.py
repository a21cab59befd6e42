"""The ``DetectorGraph`` of a Detectron2 R-CNN, and what turns its outputs into results as Detectron2 gives them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.layers import ROIAlign
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.structures.keypoints import heatmaps_to_keypoints
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..deploy.graph import DetectorGraph, output_names
from ..models.input_size import input_size
from ..models.rcnn import BoxRule, Head, PoolRule, ProposalRule
from ..utils.errors import InputError


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

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head.layers(x)


def to_graph(detector: GeneralizedRCNN) -> DetectorGraph:
    """A graph that shares the detector's layers.

    Raises:
        InputError: another kind of RPN, anchors, heads or poolers than the R-CNN family with FPN has.
    """
    rpn, heads = detector.proposal_generator, detector.roi_heads
    for what, part, kind in (("detector", detector, GeneralizedRCNN), ("proposal_generator", rpn, RPN)):
        _require(what, part, kind)
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
        predictor.test_topk_per_image,
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
    graph = DetectorGraph(
        Maps(detector.backbone, order),
        rpn.rpn_head,
        list(rpn.anchor_generator.cell_anchors),
        rule,
        head["box"],
        boxes,
        head.get("mask"),
        head.get("keypoint"),
        detector.pixel_mean.flatten().tolist(),
        detector.pixel_std.flatten().tolist(),
        max(1, detector.backbone.size_divisibility),
    )
    return graph.to(detector.pixel_mean.device).train(detector.training)


def _head(heads: nn.Module, name: str, layers: nn.Module, order: list[str]) -> Head:
    pooler, used = getattr(heads, f"{name}_pooler"), getattr(heads, f"{name}_in_features")
    if pooler is None or not all(isinstance(each, ROIAlign) for each in pooler.level_poolers):
        raise InputError(f"{name}_pooler: expected RoIAlign, got another pooling; set POOLER_TYPE to ROIAlignV2")
    if missing := [each for each in used if each not in order]:
        raise InputError(f"{name}_pooler: expected maps that the RPN reads too, got {missing[0]}; add it to the RPN's")
    first = pooler.level_poolers[0]
    rule = PoolRule(
        tuple(first.output_size),
        tuple(each.spatial_scale for each in pooler.level_poolers),
        first.sampling_ratio,
        first.aligned,
        (pooler.canonical_box_size, pooler.canonical_level),
        (0.0, 1e-8),
    )
    return Head(rule, layers, levels=tuple(order.index(each) for each in used))


def _require(what: str, part: nn.Module, kind: type) -> None:
    if not isinstance(part, kind):
        raise InputError(f"{what}: expected {kind.__name__}, got {type(part).__name__}; deploy it yourself")


def describe(detector: GeneralizedRCNN) -> dict[str, Any]:
    """What ``DeployInfo`` has to know; the sizes are Detectron2's defaults, as only a config says others."""
    heads = detector.roi_heads
    return {
        "outputs": output_names(heads.mask_on, heads.keypoint_on),
        "color": detector.input_format or "BGR",
        "min_size": 800,
        "max_size": 1333,
        "proposals": detector.proposal_generator.post_nms_topk[False],
    }


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


def keypoints(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """Keypoints (N, K, 3) as x, y, score from heat maps (N, K, S, S) and boxes (N, 4)."""
    return heatmaps_to_keypoints(heatmaps, boxes)[:, :, [0, 1, 3]]


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks (N, H, W), bool, of an image from masks (N, 1, S, S) of its boxes."""
    return paste_masks_in_image(masks[:, 0], boxes, (height, width))


def native_call(detector: GeneralizedRCNN, picture: np.ndarray) -> Callable[[], Any]:
    """What runs a picture (H, W, 3), RGB, of the network's input size through the detector itself."""

    def call() -> Any:
        pixels = picture if detector.input_format == "RGB" else picture[:, :, ::-1]
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
        return detector([{"image": image, "height": picture.shape[0], "width": picture.shape[1]}])

    return call


def detect(detector: GeneralizedRCNN, image: np.ndarray, min_size: int, max_size: int) -> dict[str, np.ndarray]:
    """What the detector itself finds in a picture (H, W, 3), uint8, in its own colour order: ``Detections``' fields."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    given = {"image": resize(pixels, min_size, max_size), "height": image.shape[0], "width": image.shape[1]}
    found = detector([given])[0]["instances"].to("cpu").get_fields()
    names = {"scores": "scores", "pred_classes": "labels", "pred_masks": "masks", "pred_keypoints": "keypoints"}
    fields = {field: found[name].numpy() for name, field in names.items() if name in found}
    return {"boxes": found["pred_boxes"].tensor.numpy()} | fields


def native_parts(detector: GeneralizedRCNN) -> dict[str, nn.Module]:
    """The parts of the detector itself that a frame goes through."""
    return {"backbone": detector.backbone, "rpn": detector.proposal_generator, "roi_heads": detector.roi_heads}


def training_call(detector: GeneralizedRCNN, images: Tensor, boxes: list[Tensor]) -> Callable[[], dict[str, Tensor]]:
    """What computes the losses of images (B, 3, H, W) in 0..1 with boxes (N, 4) of each, all of the first class."""
    height, width = images.shape[2:]
    heads, inputs = detector.roi_heads, []
    for image, each in zip(images, boxes, strict=True):
        found = Instances((height, width))
        found.gt_boxes, found.gt_classes = Boxes(each), torch.zeros(len(each), dtype=torch.long)
        if heads.mask_on:
            found.gt_masks = PolygonMasks([[_corners(box)] for box in each])
        if heads.keypoint_on:
            middle = (each[:, None, :2] + each[:, None, 2:]) / 2
            points = torch.cat([middle, torch.full((len(each), 1, 1), 2.0)], 2)
            found.gt_keypoints = Keypoints(points.repeat(1, heads.keypoint_head.num_keypoints, 1))
        inputs.append({"image": 255 * image, "instances": found})

    def call() -> dict[str, Tensor]:
        with EventStorage():
            return detector(inputs)

    return call


def _corners(box: Tensor) -> np.ndarray:
    left, top, right, bottom = box.tolist()
    return np.array([left, top, right, top, right, bottom, left, bottom])

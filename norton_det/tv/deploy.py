"""The ``DetectorGraph`` of a torchvision R-CNN, and what turns its outputs into results as torchvision gives them."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign

from ..deploy.graph import DetectorGraph, output_names
from ..models.input_size import floor_size, input_size, resize_scale
from ..models.rcnn import BoxRule, Head, PoolRule, ProposalRule
from ..utils.errors import InputError

PROBE = 128  # pixels: side of the image that tells the strides of the maps


class MapList(nn.Module):
    """A backbone that gives its maps as a list."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.backbone(x).values())


def to_graph(detector: FasterRCNN) -> DetectorGraph:
    """A graph that shares the detector's layers.

    Raises:
        InputError: poolers or predictors of another kind than torchvision's builders make.
    """
    rpn, heads, transform = detector.rpn, detector.roi_heads, detector.transform
    device = next(detector.parameters()).device
    with torch.no_grad():
        maps = detector.backbone(torch.zeros(1, 3, PROBE, PROBE, device=device))
    strides = {name: PROBE / map_.shape[-1] for name, map_ in maps.items()}
    proposals = ProposalRule(
        rpn._pre_nms_top_n["testing"],
        rpn._post_nms_top_n["testing"],
        rpn.nms_thresh,
        rpn.min_size,
        rpn.score_thresh,
        tuple(rpn.box_coder.weights),
    )
    boxes = BoxRule(
        heads.score_thresh, heads.nms_thresh, heads.detections_per_img, 1e-2, tuple(heads.box_coder.weights)
    )
    found = {name: _head(heads, name, strides) for name in ("box", "mask", "keypoint")}
    mean, std = ([255 * value for value in values] for values in (transform.image_mean, transform.image_std))
    graph = DetectorGraph(
        MapList(detector.backbone),
        rpn.head,
        rpn.anchor_generator.cell_anchors,
        proposals,
        found["box"],
        boxes,
        found["mask"],
        found["keypoint"],
        mean,
        std,
        transform.size_divisible,
    )
    return graph.to(device).train(detector.training)


def _head(heads: nn.Module, name: str, strides: dict[str, float]) -> Head | None:
    if name != "box" and not getattr(heads, f"has_{name}")():
        return None
    pool = getattr(heads, f"{name}_roi_pool")
    if not isinstance(pool, MultiScaleRoIAlign):
        raise InputError(f"{name}_roi_pool: expected MultiScaleRoIAlign, got {type(pool).__name__}; deploy it yourself")
    names = [each for each in strides if each in pool.featmap_names]
    rule = PoolRule(
        tuple(pool.output_size),
        tuple(1 / strides[each] for each in names),
        pool.sampling_ratio,
        False,
        (pool.canonical_scale, pool.canonical_level),
        (1e-6, 0.0),
    )
    layers = nn.Sequential(getattr(heads, f"{name}_head"), getattr(heads, f"{name}_predictor"))
    return Head(rule, layers, levels=tuple(list(strides).index(each) for each in names))


def describe(detector: FasterRCNN) -> dict[str, Any]:
    """What ``DeployInfo`` has to know."""
    transform, heads = detector.transform, detector.roi_heads
    if transform.fixed_size is not None or getattr(transform, "_skip_resize", False):
        raise InputError("transform: expected min_size and max_size, got fixed_size or _skip_resize; leave them out")
    return {
        "outputs": output_names(heads.has_mask(), heads.has_keypoint()),
        "color": "RGB",
        "min_size": int(transform.min_size[-1]),
        "max_size": int(transform.max_size),
        "proposals": detector.rpn._post_nms_top_n["testing"],
    }


def resize(image: Tensor, min_size: int, max_size: int) -> Tensor:
    """An image (3, H, W) as torchvision's ``GeneralizedRCNNTransform`` resizes it, bilinear, on floats: to the
    (3, h, w) of ``input_size``.
    """
    old = (image.shape[1], image.shape[2])
    if input_size(*old, min_size, max_size, floor_size) == old:
        return image
    scale = resize_scale(*old, min_size, max_size)
    options: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "recompute_scale_factor": True}
    return nn.functional.interpolate(image[None], scale_factor=scale, **options)[0]


def keypoints(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """Keypoints (N, K, 3) as x, y, score from heat maps (N, K, S, S) and boxes (N, 4)."""
    found, scores = heatmaps_to_keypoints(heatmaps, boxes)
    return torch.cat([found[..., :2], scores[..., None]], 2)


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks (N, H, W), bool, of an image from masks (N, 1, S, S) of its boxes."""
    return paste_masks_in_image(masks, boxes, (height, width))[:, 0] >= 0.5


def native_call(detector: FasterRCNN, picture: np.ndarray) -> Callable[[], Any]:
    """What runs a picture (H, W, 3), RGB, through the detector itself, at the picture's size."""
    return lambda: _run(detector, picture, min(picture.shape[:2]), max(picture.shape[:2]))


def detect(detector: FasterRCNN, image: np.ndarray, min_size: int, max_size: int) -> dict[str, np.ndarray]:
    """What the detector itself finds in a picture (H, W, 3), uint8, RGB: ``Detections``' fields."""
    found = {name: value.cpu() for name, value in _run(detector, image, min_size, max_size)[0].items()}
    fields = {name: found[name].numpy() for name in ("boxes", "scores", "labels")}
    if "masks" in found:
        fields["masks"] = (found["masks"][:, 0] >= 0.5).numpy()
    if "keypoints" in found:
        fields["keypoints"] = torch.cat([found["keypoints"][..., :2], found["keypoints_scores"][..., None]], 2).numpy()
    return fields


def _run(detector: FasterRCNN, picture: np.ndarray, min_size: int, max_size: int) -> list[dict[str, Tensor]]:
    image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 255
    if min_size == 0:  # not resized
        min_size, max_size = min(picture.shape[:2]), max(picture.shape[:2])
    kept = detector.transform
    detector.transform = copy.copy(kept)
    detector.transform.min_size, detector.transform.max_size = (min_size,), max_size
    try:
        return detector([image.to(next(detector.parameters()).device)])
    finally:
        detector.transform = kept


def native_parts(detector: FasterRCNN) -> dict[str, nn.Module]:
    """The parts of the detector itself that a frame goes through."""
    return {"backbone": detector.backbone, "rpn": detector.rpn, "roi_heads": detector.roi_heads}


def training_call(detector: FasterRCNN, images: Tensor, boxes: list[Tensor]) -> Callable[[], dict[str, Tensor]]:
    """What computes the losses of images (B, 3, H, W) in 0..1 with boxes (N, 4) of each, all of the first class."""
    device = next(detector.parameters()).device
    targets = []
    for each in boxes:
        count = len(each)
        target = {"boxes": each, "labels": torch.ones(count, dtype=torch.long)}
        if detector.roi_heads.has_mask():
            target["masks"] = _filled(each, *images.shape[2:]).to(torch.uint8)
        if detector.roi_heads.has_keypoint():
            points = detector.roi_heads.keypoint_predictor.kps_score_lowres.out_channels
            middle = (each[:, None, :2] + each[:, None, 2:]) / 2
            target["keypoints"] = torch.cat([middle, torch.ones(count, 1, 1)], 2).repeat(1, points, 1)
        targets.append({name: value.to(device) for name, value in target.items()})
    inputs = list(images.to(device))
    return lambda: detector(inputs, targets)


def _filled(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks (N, H, W) of boxes (N, 4)."""
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None]
    left, top, right, bottom = (side[:, None, None] for side in boxes.unbind(1))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)

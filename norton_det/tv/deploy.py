"""A torchvision R-CNN taken apart for the graph of the deployment, and pictures resized as torchvision does."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import MultiScaleRoIAlign

from ..models.input_size import floor_size, input_size, resize_scale
from ..models.preprocessing import Preprocessing
from ..models.rcnn import BoxRule, Head, PoolRule, ProposalRule, RCNNParts
from ..utils.errors import InputError

PROBE = 128  # pixels: side of the image that tells the strides of the maps


class MapList(nn.Module):
    """A backbone that gives its maps as a list."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.backbone(x).values())


def parts_of(detector: FasterRCNN, preprocessing: Preprocessing) -> RCNNParts:
    """The detector taken apart; layers are shared with it.

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
    return RCNNParts(
        MapList(detector.backbone),
        rpn.head,
        rpn.anchor_generator.cell_anchors,
        proposals,
        _head(heads, "box", strides),
        boxes,
        _head(heads, "mask", strides) if heads.has_mask() else None,
        _head(heads, "keypoint", strides) if heads.has_keypoint() else None,
        preprocessing,
        transform.size_divisible,
    )


def _head(heads: nn.Module, name: str, strides: dict[str, float]) -> Head:
    pool = getattr(heads, f"{name}_roi_pool")
    if not isinstance(pool, MultiScaleRoIAlign):
        raise InputError(f"{name}_roi_pool: expected MultiScaleRoIAlign, got {type(pool).__name__}; deploy it yourself")
    names = [map_name for map_name in strides if map_name in pool.featmap_names]
    rule = PoolRule(
        tuple(pool.output_size),
        tuple(1 / strides[map_name] for map_name in names),
        pool.sampling_ratio,
        False,
        (pool.canonical_scale, pool.canonical_level),
        (1e-6, 0.0),
    )
    layers = nn.Sequential(getattr(heads, f"{name}_head"), getattr(heads, f"{name}_predictor"))
    return Head(rule, layers, levels=tuple(list(strides).index(map_name) for map_name in names))


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

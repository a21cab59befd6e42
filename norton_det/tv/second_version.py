"""The parts that torchvision's second versions (``fasterrcnn_resnet50_fpn_v2``, ``maskrcnn_resnet50_fpn_v2``) have.

A neck and heads with batch normalisation: an RPN of two convolutions, a box head of four and a linear layer.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead

_MARK = "backbone.fpn.inner_blocks.0.1.weight"  # the normalisation of the neck
_DEPTH, _RPN_DEPTH, _POOLED, _LINEAR = 4, 2, 7, 1024


def is_second_version(names: Mapping[str, Any]) -> bool:
    """Whether a detector with tensors of these names is such a one."""
    return _MARK in names


def second_parts(kind: str, channels: int, anchors: AnchorGenerator | None) -> dict[str, nn.Module]:
    """Its fresh heads, by the names of torchvision's arguments.

    Args:
        kind: faster or mask.
        channels: of the FPN's maps.
        anchors: of the RPN; torchvision's three of a cell by default.
    """
    per_cell = 3 if anchors is None else anchors.num_anchors_per_location()[0]
    layers = [channels] * _DEPTH
    norm: Any = nn.BatchNorm2d
    parts: dict[str, nn.Module] = {
        "rpn_head": RPNHead(channels, per_cell, conv_depth=_RPN_DEPTH),
        "box_head": FastRCNNConvFCHead((channels, _POOLED, _POOLED), layers, [_LINEAR], norm_layer=norm),
    }
    if kind == "mask":
        parts["mask_head"] = MaskRCNNHeads(channels, layers, 1, norm_layer=norm)
    return parts

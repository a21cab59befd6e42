"""Values of a config that have to agree with one another, and names that are looked up: what Detectron2 asserts while
it builds, as one line before anything is built.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
)
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
)

from ..utils.errors import InputError
from .config import default_config
from .config_values import check_values, require_name

STRIDES = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": 32}
RESNETS = ("build_resnet_backbone", "build_norton_resnet_backbone")
FPNS = ("build_resnet_fpn_backbone", "build_norton_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone")
DENSE = {"RetinaNet": "RETINANET"}  # detectors of Detectron2 without regions, and the node of their heads
WITH_REGIONS = ("GeneralizedRCNN", "PanopticFPN")


def check_model(cfg: CfgNode) -> None:
    """Refuse a config that makes no network.

    Raises:
        InputError: one line with the key, what was expected, what came and the mend.
    """
    check_values(cfg, default_config())
    model = cfg.MODEL
    architectures = [name for name, _ in META_ARCH_REGISTRY]
    require_name("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, architectures, "GeneralizedRCNN has all R-CNNs")
    _require_registered("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY)
    _check_input(cfg)
    levels = _check_backbone(cfg)
    with_regions = model.META_ARCHITECTURE in WITH_REGIONS
    if with_regions or model.META_ARCHITECTURE == "ProposalNetwork":
        _check_proposals(cfg, levels)
    if with_regions:
        _check_heads(cfg, levels)
    if model.META_ARCHITECTURE in DENSE:
        node = DENSE[model.META_ARCHITECTURE]
        used = _check_features(f"MODEL.{node}.IN_FEATURES", model[node].IN_FEATURES, levels)
        _check_anchors(cfg, used)
        _check_labels(f"MODEL.{node}", model[node])


def number_of_classes(cfg: CfgNode) -> tuple[str, int]:
    """The key that says how many classes the heads of a config have, and its value."""
    node = DENSE.get(cfg.MODEL.META_ARCHITECTURE, "ROI_HEADS")
    return f"MODEL.{node}.NUM_CLASSES", cfg.MODEL[node].NUM_CLASSES


def _require_registered(key: str, name: Any, registry: Any) -> None:
    require_name(key, name, [known for known, _ in registry])


def _check_input(cfg: CfgNode) -> None:
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise InputError(f"MODEL.DEVICE: expected cpu, cuda or cuda:0, got {cfg.MODEL.DEVICE!r}; use one") from None
    if device.type == "cuda" and (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise InputError(
            f"MODEL.DEVICE: expected one of {torch.cuda.device_count()} GPUs, got {cfg.MODEL.DEVICE}; use cuda"
        )
    mean, deviation = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    for key, values in (("PIXEL_MEAN", mean), ("PIXEL_STD", deviation)):
        if len(values) != channels:
            raise InputError(
                f"MODEL.{key}: expected {channels} numbers for INPUT.FORMAT {cfg.INPUT.FORMAT}, got {list(values)}; "
                "give one per channel"
            )


def _check_backbone(cfg: CfgNode) -> dict[str, int] | None:
    """The maps of the backbone with their strides; ``None`` of one that is not known here."""
    resnets, fpn, name = cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.BACKBONE.NAME
    if name not in (*RESNETS, *FPNS):
        return None
    if name != "build_norton_resnet_backbone" and name != "build_norton_resnet_fpn_backbone":
        _check_resnet(resnets)
    outputs = list(resnets.OUT_FEATURES)
    for output in outputs:
        require_name("MODEL.RESNETS.OUT_FEATURES", output, list(STRIDES))
    strides = STRIDES | ({"res5": 16} if resnets.RES5_DILATION == 2 else {})
    if name in RESNETS:
        return {output: strides[output] for output in outputs}
    used = _check_features("MODEL.FPN.IN_FEATURES", fpn.IN_FEATURES, {output: strides[output] for output in outputs})
    _check_pyramid("MODEL.FPN.IN_FEATURES", list(used), list(used.values()))
    check_group_norm("MODEL.FPN.NORM", fpn.NORM, fpn.OUT_CHANNELS, "MODEL.FPN.OUT_CHANNELS")
    last = max(used.values())
    beyond = [last * 2, last * 4] if name == "build_retinanet_resnet_fpn_backbone" else [last * 2]
    if name == "build_retinanet_resnet_fpn_backbone" and "res5" not in outputs:
        raise InputError(f"MODEL.RESNETS.OUT_FEATURES: expected res5 among them for {name}, got {outputs}; add it")
    return {f"p{stride.bit_length() - 1}": stride for stride in (*used.values(), *beyond)}


def _check_resnet(resnets: CfgNode) -> None:
    """Of Detectron2's own ResNet; norton's says for itself what it cannot be."""
    depth, plain = resnets.DEPTH, {"RES2_OUT_CHANNELS": 64, "RES5_DILATION": 1, "NUM_GROUPS": 1}
    require_name("MODEL.RESNETS.DEPTH", depth, (18, 34, 50, 101, 152), "50 is usual")
    if depth in (18, 34):
        for key, only in plain.items():
            if resnets[key] != only:
                raise InputError(f"MODEL.RESNETS.{key}: expected {only} with DEPTH {depth}, got {resnets[key]}; set it")
        if any(resnets.DEFORM_ON_PER_STAGE):
            raise InputError(
                f"MODEL.RESNETS.DEFORM_ON_PER_STAGE: expected none with DEPTH {depth}, got "
                f"{list(resnets.DEFORM_ON_PER_STAGE)}; leave it out"
            )
    groups = resnets.NUM_GROUPS
    for key, width in (
        ("NUM_GROUPS", groups * resnets.WIDTH_PER_GROUP),
        ("RES2_OUT_CHANNELS", resnets.RES2_OUT_CHANNELS),
        ("STEM_OUT_CHANNELS", resnets.STEM_OUT_CHANNELS),
    ):
        check_group_norm("MODEL.RESNETS.NORM", resnets.NORM, width, f"MODEL.RESNETS.{key}")


def _check_features(key: str, features: Sequence[str], levels: dict[str, int] | None) -> dict[str, int]:
    """The maps that are used, with their strides."""
    if not features:
        raise InputError(f"{key}: expected some maps of the backbone, got none; name them")
    if len(set(features)) < len(features):
        raise InputError(f"{key}: expected each map once, got {list(features)}; leave the second out")
    if levels is None:
        return dict.fromkeys(features, 0)
    for name in features:
        require_name(key, name, list(levels), f"MODEL.BACKBONE.NAME has {', '.join(levels)}")
    return {name: levels[name] for name in features}


def _check_pyramid(key: str, names: list[str], strides: list[int]) -> None:
    if any(after != 2 * before for before, after in pairwise(strides)):
        raise InputError(
            f"{key}: expected maps of which each is half the one before, got {names}; name those in between"
        )


def _check_proposals(cfg: CfgNode, levels: dict[str, int] | None) -> None:
    model = cfg.MODEL
    generator = model.PROPOSAL_GENERATOR.NAME
    _require_registered("MODEL.PROPOSAL_GENERATOR.NAME", generator, PROPOSAL_GENERATOR_REGISTRY)
    _require_registered("MODEL.RPN.HEAD_NAME", model.RPN.HEAD_NAME, RPN_HEAD_REGISTRY)
    _check_anchors(cfg, _check_features("MODEL.RPN.IN_FEATURES", model.RPN.IN_FEATURES, levels))
    _check_labels("MODEL.RPN", model.RPN)
    if generator == "RPN":
        _check_weights("MODEL.RPN.BBOX_REG_WEIGHTS", model.RPN.BBOX_REG_WEIGHTS)


def _check_anchors(cfg: CfgNode, used: dict[str, int]) -> None:
    node, counts = cfg.MODEL.ANCHOR_GENERATOR, []
    _require_registered("MODEL.ANCHOR_GENERATOR.NAME", node.NAME, ANCHOR_GENERATOR_REGISTRY)
    for key in ("SIZES", "ASPECT_RATIOS"):
        values = node[key]
        lists = values if isinstance(values[0], list | tuple) else [values]
        if len(lists) not in (1, len(used)):
            raise InputError(
                f"MODEL.ANCHOR_GENERATOR.{key}: expected 1 list or {len(used)}, one for each of {', '.join(used)}, got "
                f"{len(lists)}; change them or the IN_FEATURES"
            )
        counts.append([len(each) for each in lists] * (len(used) // len(lists)))
    anchors = [sizes * ratios for sizes, ratios in zip(*counts, strict=True)]
    if len(set(anchors)) > 1:
        raise InputError(
            f"MODEL.ANCHOR_GENERATOR.SIZES: expected as many anchors on each map, got {anchors}; even them out"
        )


def _check_labels(node: str, values: CfgNode) -> None:
    thresholds, labels = list(values.IOU_THRESHOLDS), list(values.IOU_LABELS)
    if thresholds != sorted(thresholds) or thresholds[0] <= 0:
        raise InputError(f"{node}.IOU_THRESHOLDS: expected growing numbers above 0, got {thresholds}; sort them")
    if len(labels) != len(thresholds) + 1:
        raise InputError(
            f"{node}.IOU_LABELS: expected {len(thresholds) + 1} for {len(thresholds)} IOU_THRESHOLDS, got {labels}; "
            "give one more label than thresholds"
        )


def _check_weights(key: str, weights: Sequence[float], count: int = 4) -> None:
    if len(weights) != count:
        raise InputError(f"{key}: expected {count} numbers, got {list(weights)}; give x, y, width and height")


def _check_heads(cfg: CfgNode, levels: dict[str, int] | None) -> None:
    model, box = cfg.MODEL, cfg.MODEL.ROI_BOX_HEAD
    name = model.ROI_HEADS.NAME
    _require_registered("MODEL.ROI_HEADS.NAME", name, ROI_HEADS_REGISTRY)
    used = _check_features("MODEL.ROI_HEADS.IN_FEATURES", model.ROI_HEADS.IN_FEATURES, levels)
    _check_labels("MODEL.ROI_HEADS", model.ROI_HEADS)
    if name == "Res5ROIHeads":
        if len(used) > 1:
            raise InputError(f"MODEL.ROI_HEADS.IN_FEATURES: expected one map for {name}, got {list(used)}; use res4")
        if model.KEYPOINT_ON:
            raise InputError(f"MODEL.KEYPOINT_ON: expected False with {name}, got True; use StandardROIHeads")
        if model.RESNETS.DEFORM_ON_PER_STAGE[-1]:
            raise InputError(f"MODEL.RESNETS.DEFORM_ON_PER_STAGE: expected False in the last place for {name}; set it")
    if name in ("StandardROIHeads", "CascadeROIHeads"):
        _check_pyramid("MODEL.ROI_HEADS.IN_FEATURES", list(used), list(used.values()) if levels else [])
        _require_registered("MODEL.ROI_BOX_HEAD.NAME", box.NAME, ROI_BOX_HEAD_REGISTRY)
        if box.NAME == "FastRCNNConvFCHead" and box.NUM_CONV + box.NUM_FC == 0:
            raise InputError("MODEL.ROI_BOX_HEAD.NUM_FC: expected a layer, got NUM_FC 0 and NUM_CONV 0; set it to 2")
        if box.NUM_CONV:
            check_group_norm("MODEL.ROI_BOX_HEAD.NORM", box.NORM, box.CONV_DIM, "MODEL.ROI_BOX_HEAD.CONV_DIM")
        if model.KEYPOINT_ON:
            head = model.ROI_KEYPOINT_HEAD.NAME
            _require_registered("MODEL.ROI_KEYPOINT_HEAD.NAME", head, ROI_KEYPOINT_HEAD_REGISTRY)
    if name != "RROIHeads":
        _check_weights("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", box.BBOX_REG_WEIGHTS)
    if model.MASK_ON:
        mask = model.ROI_MASK_HEAD
        _require_registered("MODEL.ROI_MASK_HEAD.NAME", mask.NAME, ROI_MASK_HEAD_REGISTRY)
        check_group_norm("MODEL.ROI_MASK_HEAD.NORM", mask.NORM, mask.CONV_DIM, "MODEL.ROI_MASK_HEAD.CONV_DIM")
    if box.USE_FED_LOSS and not box.USE_SIGMOID_CE:
        raise InputError(
            "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE: expected True with USE_FED_LOSS, got False; set it to True"
        )
    if name == "CascadeROIHeads":
        _check_cascade(model)


def _check_cascade(model: CfgNode) -> None:
    cascade, first = model.ROI_BOX_CASCADE_HEAD, model.ROI_HEADS.IOU_THRESHOLDS[0]
    if not model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise InputError(
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG: expected True with CascadeROIHeads, got False; set it to True"
        )
    for weights in cascade.BBOX_REG_WEIGHTS:
        _check_weights("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", weights)
    if len(cascade.BBOX_REG_WEIGHTS) != len(cascade.IOUS):
        raise InputError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS: expected {len(cascade.BBOX_REG_WEIGHTS)}, as many as BBOX_REG_WEIGHTS, "
            f"got {list(cascade.IOUS)}; give one per stage"
        )
    if cascade.IOUS[0] != first:
        raise InputError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS: expected to begin with ROI_HEADS.IOU_THRESHOLDS {first}, got "
            f"{list(cascade.IOUS)}; make them agree"
        )


def check_group_norm(key: str, norm: str, width: int, width_key: str) -> None:
    """Refuse group normalisation, whose 32 groups have to divide the width, with another."""
    if norm == "GN" and width % 32:
        raise InputError(f"{key}: GN needs widths in multiples of 32, got {width} of {width_key}; use BN")

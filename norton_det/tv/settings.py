"""Everything that torchvision's R-CNNs are told beside their weights: sizes, anchors, numbers of proposals, thresholds.

They are read off a detector under the names of ``torchvision.models.detection.FasterRCNN``'s arguments, as JSON has
them, travel in its file, and become those arguments again.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from ..utils.errors import InputError
from .second_version import is_second_version

Settings = dict[str, Any]
EPS = "norm_eps"  # of every normalisation of the backbone; torchvision's first COCO detectors have 0
FPN, BOX_HEAD, ANCHORS = "fpn_channels", "box_head_channels", "rpn_anchor_generator"
VERSION = "version"  # of torchvision's detectors: 2 has other heads, see ``second_version``
POOLS = ("box_roi_pool", "mask_roi_pool", "keypoint_roi_pool")
USUAL_EPS, USUAL_FPN, USUAL_BOX_HEAD = 1e-5, 256, 1024
FPN_ANCHORS = 3  # of a cell, in every detector of torchvision with FPN
_SETTINGS_OF_POOL = ("featmap_names", "output_size", "sampling_ratio", "canonical_scale", "canonical_level")


def settings_of(detector: FasterRCNN) -> Settings:
    """What a detector is told beside its weights, classes and normalisation, as JSON has it.

    Raises:
        InputError: it has a part that torchvision's builders do not make.
    """
    rpn, heads, transform = detector.rpn, detector.roi_heads, detector.transform
    generator = rpn.anchor_generator
    if type(generator) is not AnchorGenerator:
        raise InputError(
            f"rpn_anchor_generator: expected torchvision's, got {type(generator).__name__}; save it yourself"
        )
    if transform.fixed_size is not None or getattr(transform, "_skip_resize", False):
        raise InputError(
            "transform: expected min_size and max_size, got fixed_size or _skip_resize, which a file cannot hold; "
            "leave them out"
        )
    settings: Settings = {
        "min_size": transform.min_size,
        "max_size": transform.max_size,
        "size_divisible": transform.size_divisible,
        ANCHORS: {"sizes": generator.sizes, "aspect_ratios": generator.aspect_ratios},
        "rpn_nms_thresh": rpn.nms_thresh,
        "rpn_score_thresh": rpn.score_thresh,
        "rpn_fg_iou_thresh": rpn.proposal_matcher.high_threshold,
        "rpn_bg_iou_thresh": rpn.proposal_matcher.low_threshold,
        "rpn_batch_size_per_image": rpn.fg_bg_sampler.batch_size_per_image,
        "rpn_positive_fraction": rpn.fg_bg_sampler.positive_fraction,
        "box_score_thresh": heads.score_thresh,
        "box_nms_thresh": heads.nms_thresh,
        "box_detections_per_img": heads.detections_per_img,
        "box_fg_iou_thresh": heads.proposal_matcher.high_threshold,
        "box_bg_iou_thresh": heads.proposal_matcher.low_threshold,
        "box_batch_size_per_image": heads.fg_bg_sampler.batch_size_per_image,
        "box_positive_fraction": heads.fg_bg_sampler.positive_fraction,
        "bbox_reg_weights": heads.box_coder.weights,
        FPN: detector.backbone.out_channels,
        BOX_HEAD: getattr(getattr(heads.box_head, "fc6", None), "out_features", USUAL_BOX_HEAD),
        EPS: _eps(detector.backbone.body),
        VERSION: 2 if is_second_version(detector.state_dict()) else 1,
    }
    for phase, short in (("training", "train"), ("testing", "test")):
        settings[f"rpn_pre_nms_top_n_{short}"] = rpn._pre_nms_top_n[phase]
        settings[f"rpn_post_nms_top_n_{short}"] = rpn._post_nms_top_n[phase]
    for name in POOLS:
        if (pool := getattr(heads, name, None)) is not None:
            if type(pool) is not MultiScaleRoIAlign:
                raise InputError(f"{name}: expected MultiScaleRoIAlign, got {type(pool).__name__}; save it yourself")
            settings[name] = {field: getattr(pool, field) for field in _SETTINGS_OF_POOL}
    return {name: _plain(value) for name, value in settings.items()}


def keywords_of(settings: Mapping[str, Any]) -> Settings:
    """Keyword arguments of torchvision's classes from ``settings_of``; FPN, box head, eps, version are none of them."""
    keywords = {name: _tuples(value) for name, value in settings.items() if name not in (FPN, BOX_HEAD, EPS, VERSION)}
    if ANCHORS in keywords:
        keywords[ANCHORS] = AnchorGenerator(**keywords[ANCHORS])
    for name in POOLS:
        if name in keywords:
            keywords[name] = MultiScaleRoIAlign(
                **keywords[name] | {"featmap_names": list(keywords[name]["featmap_names"])}
            )
    return keywords


def box_head_of(settings: Mapping[str, Any]) -> TwoMLPHead | None:
    """A fresh box head, where it is not torchvision's usual one."""
    channels = settings.get(BOX_HEAD, USUAL_BOX_HEAD)
    if channels == USUAL_BOX_HEAD:
        return None
    side = settings["box_roi_pool"]["output_size"][0]
    return TwoMLPHead(settings.get(FPN, USUAL_FPN) * side**2, channels)


def set_eps(detector: FasterRCNN, settings: Mapping[str, Any]) -> None:
    """Give the normalisations of a detector's backbone their eps."""
    body: Any = detector.backbone.body
    for module in body.modules():
        if hasattr(module, "running_var") and hasattr(module, "eps"):
            module.eps = settings.get(EPS, USUAL_EPS)


def check_settings(settings: object, source: str) -> Settings:
    """Settings of a file, if they are such; what they mean together is checked where a detector is built of them.

    Raises:
        InputError: an unknown name, or a value of another kind.
    """
    if not isinstance(settings, dict):
        raise InputError(f"{source}: settings: expected names with values, got {settings!r:.80}; write the file again")
    whole = {"size_divisible", "max_size", FPN, BOX_HEAD, VERSION} | {name for name in _KNOWN if name.endswith(_COUNTS)}
    for name, value in settings.items():
        if name not in _KNOWN:
            raise InputError(f"{source}: settings: unknown field {name[:40]!r}; update norton_det")
        if name in _NESTED:
            good = isinstance(value, list | dict) and all(_finite(leaf) for leaf in _leaves(value))
        elif name in whole:
            good = type(value) is int and 0 <= value <= 1 << 20
        else:
            good = isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
        if not good:
            raise InputError(
                f"{source}: settings: {name}: expected a number or list, got {value!r:.80}; write it again"
            )
    return settings


_COUNTS = ("_top_n_train", "_top_n_test", "per_image", "per_img")
_NESTED = {"min_size", "bbox_reg_weights", ANCHORS, *POOLS}
_KNOWN = {
    *_NESTED,
    *(
        "max_size",
        "size_divisible",
        FPN,
        BOX_HEAD,
        EPS,
        VERSION,
        "rpn_nms_thresh",
        "rpn_score_thresh",
        "box_score_thresh",
    ),
    *(f"rpn_{stage}_nms_top_n_{phase}" for stage in ("pre", "post") for phase in ("train", "test")),
    *(f"{part}_{side}_iou_thresh" for part in ("rpn", "box") for side in ("fg", "bg")),
    *(f"{part}_{name}" for part in ("rpn", "box") for name in ("batch_size_per_image", "positive_fraction")),
    *("box_nms_thresh", "box_detections_per_img"),
}


def _eps(body: nn.Module) -> float:
    values: set[Any] = {
        module.eps for module in body.modules() if hasattr(module, "running_var") and hasattr(module, "eps")
    }
    if len(values) > 1:
        raise InputError(f"backbone: expected one eps of its normalisations, got {sorted(values)}; save it yourself")
    return float(next(iter(values), USUAL_EPS))


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON reads them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    """Lists as tuples, as torchvision takes them."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for inner in value for leaf in _leaves(inner)] if isinstance(value, list) else [value]


def _finite(leaf: object) -> bool:
    return isinstance(leaf, str) or (isinstance(leaf, int | float) and math.isfinite(leaf))

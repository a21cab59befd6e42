"""What a file says of a Detectron2 detector: the keys of its config that shape it, and what its outputs stand for.

The file's field ``detector`` is::

    "detector": {"config": {"INPUT.MIN_SIZE_TEST": 320, ...}, "labels": {...}}

``config`` has the keys of MODEL, INPUT and TEST that differ from Detectron2's defaults, by their full names; what
belongs to a run (weights, device, schedule, data sets) and the ranks, which the file says elsewhere, are left out.
``labels`` are those of ``models.labels``. A file without that field, such as one of Detectron2's model zoo, is read by
its tensors: see ``d2.zoo``.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint.opened import DETECTOR_KEY, OpenedWeights
from ..data.dataset_labels import dataset_labels
from ..data.register import class_names
from ..models.description import NetworkInfo
from ..models.factorize import apply_layout
from ..models.labels import Labels, labels_of
from ..models.spec import CompressionSpec
from ..models.state import is_counter
from ..utils.errors import InputError, naming
from .agreement import NORTON_OF
from .config import default_config, merge_options, one_line
from .config_values import leaves, same_value, value_of
from .zoo import config_of_tensors, labels_of_tensors

logger = logging.getLogger(__name__)
CONFIG = "norton_config"  # attribute of a detector that was built from one
_NODES = ("MODEL", "INPUT", "TEST")
_OF_A_RUN = (
    *("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.NORTON.", "MODEL.PARTIAL_WEIGHTS", "MODEL.LOAD_PROPOSALS"),
    *("TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS", "TEST.AUG.", "TEST.PRECISE_BN."),
)
_OF_TRAINING = (
    "_TRAIN",
    "LOSS",
    "SMOOTH_L1",
    "BATCH_SIZE",
    "POSITIVE_FRACTION",
    "IOU_",
    "FREEZE_AT",
    "RANDOM_FLIP",
    "CROP",
)


def config_fields(cfg: CfgNode, *, norton: bool) -> dict[str, Any]:
    """Keys of a config that shape a detector and are not Detectron2's defaults, as JSON has them.

    Args:
        cfg: of the detector.
        norton: its ResNet has this package's names, whatever builder the config names.
    """
    defaults = dict(leaves(default_config()))
    fields = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in leaves(cfg)
        if key.startswith(_NODES) and not key.startswith(_OF_A_RUN) and defaults.get(key, CfgNode) != value
    }
    if norton:
        name = cfg.MODEL.BACKBONE.NAME
        fields["MODEL.BACKBONE.NAME"] = NORTON_OF.get(name, name)
    return fields


def config_of(opened: OpenedWeights, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a file's detector: as the file says, else by its tensors and its origin, which is told; frozen.

    Args:
        opened: a file of Detectron2's names; it becomes ``MODEL.WEIGHTS``.
        opts: ``KEY VALUE`` pairs that come last.

    Raises:
        InputError: it is no whole detector, says what Detectron2 has not, or an option is none.
    """
    fields = opened.fields.get(DETECTOR_KEY)
    described = isinstance(fields, dict) and "config" in fields
    with naming(opened.source):
        cfg = config_from(_fields_of(opened) if described else config_of_tensors(opened))
    if cfg.MODEL.BACKBONE.NAME in NORTON_OF.values():
        set_spec(cfg, opened.info.spec)
    merge_options(cfg, opts)
    cfg.MODEL.WEIGHTS = opened.source
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def config_from(fields: Mapping[str, Any]) -> CfgNode:
    """Detectron2's default config with some keys, by their full names; not frozen.

    Raises:
        InputError: a key that Detectron2 has not, or a value of another type.
    """
    cfg = default_config()
    for key, value in fields.items():
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, ValueError, AssertionError, TypeError, AttributeError) as error:
            raise InputError(
                f"detector: {key[:80]}: expected a key of Detectron2, got another ({one_line(error)}); give --config"
            ) from None
    return cfg


def set_spec(cfg: CfgNode, spec: CompressionSpec) -> None:
    """Have a config ask for the ResNet of a spec."""
    cfg.MODEL.NORTON.RANK = [rank or 0 for rank in spec.ranks]
    cfg.MODEL.NORTON.RATIOS = list(spec.ratios)


def labels_of_file(opened: OpenedWeights | None) -> Labels:
    """What a file says of its detector's outputs; where it has as many as COCO's detectors, COCO's labels.

    Raises:
        InputError: what it says is damaged.
    """
    if opened is None:
        return Labels()
    fields = opened.fields.get(DETECTOR_KEY)
    if isinstance(fields, dict) and fields.get("labels"):
        with naming(opened.source):
            return Labels.from_fields(fields["labels"])
    return labels_of_tensors(opened)


def labels_of_dataset(name: str) -> Labels:
    """What a data set calls its classes; empty where that is not known. Its files need not be there."""
    classes = class_names(name)
    labels = dataset_labels(name)
    return labels if labels.classes else Labels(classes)


def tell_differences(cfg: CfgNode, opened: OpenedWeights) -> None:
    """Say where a config differs from the word of the file that it is given with, as far as results hang on it."""
    fields = opened.fields.get(DETECTOR_KEY)
    if not isinstance(fields, dict) or "config" not in fields:
        return
    expected = dict(leaves(config_of(opened)))
    different = [
        f"{key} {value} (the file: {expected[key]})"
        for key, value in leaves(cfg)
        if key.startswith(_NODES)
        and not key.startswith((*_OF_A_RUN, "MODEL.BACKBONE.NAME"))
        and not any(word in key for word in _OF_TRAINING)
        and key in expected
        and not same_value(expected[key], value)
    ]
    if different:
        more = f", and {len(different) - 4} more" if len(different) > 4 else ""
        logger.warning(
            "%s: the config says otherwise than the file: %s%s", opened.source, ", ".join(different[:4]), more
        )


def detector_fields(detector: nn.Module, info: NetworkInfo, config: CfgNode | None = None) -> dict[str, Any]:
    """The field of a file for a detector on a ResNet of this package; the config on it, or else ``config``, says most.

    Raises:
        InputError: there is no config, or a detector that is built from it is another one.
    """
    cfg = config_on(detector) if config is None else config
    if not isinstance(cfg, CfgNode):
        raise InputError(
            "detector: expected the config that it was built from, as it does not know its sizes itself, got "
            f"{'none' if cfg is None else type(cfg).__name__}; give config=cfg"
        )
    fields = fields_on(detector, cfg, norton=True)
    heads: Any = detector.roi_heads
    labels_of(detector).check(
        "detector", heads.num_classes, getattr(getattr(heads, "keypoint_head", None), "num_keypoints", None)
    )
    again = config_from(fields["config"])
    set_spec(again, info.spec)
    again.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        built = apply_layout(build_model(again), info.layout, "empty").state_dict()
    state = OpenedWeights("detector", detector.state_dict(), {}).detector
    shapes = [
        {(name, tuple(tensor.shape)) for name, tensor in tensors.items() if not is_counter(name)}
        for tensors in (built, state)
    ]
    if different := sorted(shapes[0] ^ shapes[1]):
        raise InputError(
            f"detector: expected the network of its config, got another one ({different[0][0]}); give the config "
            "that it was built from"
        )
    return fields


def fields_on(detector: nn.Module, cfg: CfgNode, *, norton: bool) -> dict[str, Any]:
    """The field of a file for a detector that was built from a config; ``norton``: see ``config_fields``."""
    keys = config_fields(cfg, norton=norton) | _changed_since(detector, cfg)
    return {"config": keys, "labels": labels_of(detector).to_fields()}


def config_on(detector: nn.Module) -> CfgNode | None:
    """The config that a detector was built from, where this package did it."""
    cfg = getattr(detector, CONFIG, None)
    return cfg if isinstance(cfg, CfgNode) else None


def _changed_since(detector: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """Keys that are others on a detector by now than in its config: thresholds, numbers of boxes, normalisation."""
    rpn = getattr(detector, "proposal_generator", None)
    predictor = getattr(getattr(detector, "roi_heads", None), "box_predictor", None)
    predictor = predictor[-1] if isinstance(predictor, nn.ModuleList) else predictor
    current = {
        "MODEL.RPN.NMS_THRESH": getattr(rpn, "nms_thresh", None),
        "MODEL.RPN.PRE_NMS_TOPK_TEST": getattr(rpn, "pre_nms_topk", {}).get(False),
        "MODEL.RPN.POST_NMS_TOPK_TEST": getattr(rpn, "post_nms_topk", {}).get(False),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": getattr(predictor, "test_score_thresh", None),
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": getattr(predictor, "test_nms_thresh", None),
        "TEST.DETECTIONS_PER_IMAGE": getattr(predictor, "test_topk_per_image", None),
    }
    for name, key in (("pixel_mean", "MODEL.PIXEL_MEAN"), ("pixel_std", "MODEL.PIXEL_STD")):
        values = getattr(detector, name).flatten().tolist()
        if not all(abs(a - b) < 1e-3 for a, b in zip(values, value_of(cfg, key), strict=True)):
            current[key] = values
    return {key: value for key, value in current.items() if value is not None and value != value_of(cfg, key)}


def _fields_of(opened: OpenedWeights) -> Mapping[str, Any]:
    fields = opened.fields[DETECTOR_KEY]["config"]
    if not isinstance(fields, dict) or not all(
        isinstance(key, str) and key.startswith(_NODES) and not key.startswith(_OF_A_RUN) for key in fields
    ):
        raise InputError(
            f"detector: config: expected keys of MODEL, INPUT and TEST, got {fields!r:.80}; write it again"
        )
    return fields

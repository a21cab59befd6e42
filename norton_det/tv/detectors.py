"""Faster, Mask and Keypoint R-CNN on a compressed ResNet-50-FPN, with torchvision's keyword arguments.

With ``spec="dense"`` they are torchvision's ``fasterrcnn_resnet50_fpn`` and so on, parameter for parameter.
NORTON section IV: the compressed ImageNet network is the backbone, the detector is then trained as usual.
"""

import inspect
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from ..checkpoint.opened import OpenedWeights, open_weights
from ..models.description import NetworkInfo
from ..models.factorize import apply_layout
from ..models.labels import set_labels
from ..models.preprocessing import TORCHVISION, Preprocessing
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..models.state import load_state
from ..utils.errors import InputError, first_line
from .backbone import backbone_weights, choose_spec, resnet_fpn
from .second_version import second_parts
from .settings import ANCHORS, FPN, USUAL_FPN, VERSION, Settings, box_head_of, keywords_of, set_eps
from .weights import DetectorInfo, describe_detector, read_detector_info

DEFAULT_SPEC = "norton-78"
DEFAULT_CLASSES = {"faster": 91, "mask": 91, "keypoint": 2}  # of COCO, with the background
DETECTORS = {"faster": FasterRCNN, "mask": MaskRCNN, "keypoint": KeypointRCNN}


def fasterrcnn_norton_resnet50_fpn(
    *,
    spec: str | CompressionSpec | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    weights_backbone: str | Path | NortonResNet | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN: a list of RGB images (3, H, W) in 0..1 -> boxes (N, 4) xyxy in pixels, labels, scores.

    Args:
        spec: a preset's name or a ``CompressionSpec``, also of another ResNet: ``CompressionSpec.preset("norton-78",
            "resnet18")``; without it that of the weights, without those norton-78.
        weights: file of ``save_detector``; it settles spec, classes and normalisation.
        num_classes: with the background; 91 (COCO) unless the weights say otherwise.
        weights_backbone: norton checkpoint or ``NortonResNet``; its normalisation becomes the detector's
            ``image_mean`` and ``image_std``, and weights made for BGR images are turned to RGB. Not read
            where ``weights`` is given, as in torchvision.
        trainable_backbone_layers: 0 to 5, from the last stage on; 3 where weights are given, else all.
        kwargs: of ``torchvision.models.detection.FasterRCNN``, such as ``min_size`` or ``box_score_thresh``.

    Raises:
        InputError: an argument is unknown, or contradicts the weights.
    """
    return _build(
        _Settings("faster", kwargs, spec, weights, num_classes, None, weights_backbone, trainable_backbone_layers)
    )


def maskrcnn_norton_resnet50_fpn(
    *,
    spec: str | CompressionSpec | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    weights_backbone: str | Path | NortonResNet | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN: as ``fasterrcnn_norton_resnet50_fpn``, with masks (N, 1, H, W) in 0..1."""
    return _build(
        _Settings("mask", kwargs, spec, weights, num_classes, None, weights_backbone, trainable_backbone_layers)
    )


def keypointrcnn_norton_resnet50_fpn(
    *,
    spec: str | CompressionSpec | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    num_keypoints: int | None = None,
    weights_backbone: str | Path | NortonResNet | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> KeypointRCNN:
    """Keypoint R-CNN: as ``fasterrcnn_norton_resnet50_fpn``, with keypoints (N, K, 3) as x, y, visibility.

    ``num_classes`` is 2 (person, background) and ``num_keypoints``, K, is 17 (COCO) by default.
    """
    return _build(
        _Settings(
            "keypoint",
            kwargs,
            spec,
            weights,
            num_classes,
            num_keypoints,
            weights_backbone,
            trainable_backbone_layers,
        )
    )


BUILDERS = {
    "faster": fasterrcnn_norton_resnet50_fpn,
    "mask": maskrcnn_norton_resnet50_fpn,
    "keypoint": keypointrcnn_norton_resnet50_fpn,
}


@dataclass(frozen=True)
class _Settings:
    """What a detector is built from: a kind, the arguments of torchvision's class, and those of the builders."""

    kind: str
    options: dict[str, Any]
    spec: str | CompressionSpec | None = None
    weights: str | Path | None = None
    num_classes: int | None = None
    num_keypoints: int | None = None
    weights_backbone: str | Path | NortonResNet | None = None
    trainable_layers: int | None = None


def load_torchvision_detector(source: str | Path | OpenedWeights) -> FasterRCNN:
    """The detector of a file of ``save_detector``, of torchvision's training script, or of ``torch.save(state_dict)``.

    Its kind and numbers of classes and keypoints are read off the tensors; nothing in the file is run.

    Raises:
        InputError: not such a file.
    """
    opened = open_weights(source)
    info = describe_detector(opened)
    return _from_weights(_Settings(info.kind, {}), opened, info).eval()


def _build(settings: _Settings) -> Any:
    _check_names(settings.kind, settings.options)
    if settings.weights is not None:
        if not isinstance(settings.weights, str | Path):
            raise InputError(
                f"weights: expected the path of a file of save_detector, got {type(settings.weights).__name__}; "
                "torchvision's own weights fit only the dense detector: load_state_dict them there"
            )
        opened = open_weights(settings.weights)
        return _from_weights(settings, opened, read_detector_info(opened))
    if settings.weights_backbone is None:
        spec = choose_spec(settings.spec, None, DEFAULT_SPEC)
        return _make(settings, NetworkInfo(spec, _chosen_preprocessing(settings.options), 0), trained=False)
    backbone, state, source = backbone_weights(settings.weights_backbone)
    choose_spec(settings.spec, backbone.spec, DEFAULT_SPEC)
    model = _make(settings, backbone, trained=True)
    load_state(model.backbone.body, state, source)
    return model


def _from_weights(settings: _Settings, opened: OpenedWeights, info: DetectorInfo) -> Any:
    if info.kind != settings.kind:
        raise InputError(
            f"{opened.source}: expected a {settings.kind} detector, got {info.kind}; use the builder of that kind"
        )
    classes = _agreed("num_classes", settings.num_classes, info.num_classes)
    keypoints = _agreed("num_keypoints", settings.num_keypoints, info.num_keypoints)
    choose_spec(settings.spec, info.backbone.spec, DEFAULT_SPEC)
    settings = replace(settings, num_classes=classes, num_keypoints=keypoints)
    model = build_fresh(info, settings)
    apply_layout(model, info.backbone.layout, "empty")
    load_state(model, opened.detector, opened.source)
    return model


def build_fresh(info: DetectorInfo, settings: _Settings | None = None) -> Any:
    """The detector that a description is of, with fresh weights, its factored layers dense.

    Raises:
        InputError: its settings make no detector.
    """
    if settings is None:
        settings = _Settings(info.kind, {}, num_classes=info.num_classes, num_keypoints=info.num_keypoints)
    try:
        model = _make(settings, info.backbone, True, info.settings)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"settings: expected what torchvision takes, got others ({first_line(error)}); write the file again"
        ) from None
    set_labels(model, info.labels)
    return model


def _make(settings: _Settings, backbone: NetworkInfo, trained: bool, stored: Settings | None = None) -> Any:
    """The detector with fresh weights on a backbone of that description; arguments come before stored settings."""
    kind = settings.kind
    classes = DEFAULT_CLASSES[kind] if settings.num_classes is None else settings.num_classes
    stored = stored or {}
    options = keywords_of(stored) | settings.options | _normalisation(backbone.preprocessing, settings.options)
    keypoints = settings.num_keypoints
    if kind == "keypoint":
        keypoints = 17 if keypoints is None else keypoints
        options["num_keypoints"] = keypoints
    channels, second = stored.get(FPN, USUAL_FPN), stored.get(VERSION) == 2
    norm = nn.BatchNorm2d if second else None
    body = resnet_fpn(backbone, trained, settings.trainable_layers, channels, norm)
    if second:
        options = second_parts(kind, channels, options.get(ANCHORS)) | options
    box_head = None if "box_head" in options else box_head_of(stored)
    if box_head is None:
        model = DETECTORS[kind](body, classes, **options)
    else:
        predictor = FastRCNNPredictor(box_head.fc7.out_features, classes)
        model = DETECTORS[kind](body, None, box_head=box_head, box_predictor=predictor, **options)
    set_eps(model, stored)
    model.norton_info = DetectorInfo(kind, backbone, classes, keypoints)
    return model


def _agreed(name: str, requested: int | None, stored: int | None) -> int | None:
    if requested is not None and requested != stored:
        raise InputError(f"{name}: expected {stored}, that of the weights, got {requested}; leave {name} out")
    return stored


def _check_names(kind: str, kwargs: dict[str, Any]) -> None:
    """torchvision's classes swallow unknown keyword arguments; a slip would go unseen."""
    classes = (DETECTORS[kind], FasterRCNN)
    known = {name for cls in classes for name in inspect.signature(cls.__init__).parameters}
    known -= {"self", "backbone", "kwargs", "num_classes", "num_keypoints"}
    for name in kwargs:
        if name not in known:
            raise InputError(f"{name}: no such argument of {kind} R-CNN; the arguments are {', '.join(sorted(known))}")


def _normalisation(preprocessing: Preprocessing, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``image_mean`` and ``image_std`` of the weights, in torchvision's 0..1 units; others may not be given."""
    options = {}
    for name, pixels in (("image_mean", preprocessing.mean), ("image_std", preprocessing.std)):
        values = [round(value / 255, 12) for value in pixels]
        requested = kwargs.get(name)
        if requested is not None and not (len(requested) == 3 and all(map(math.isclose, requested, values))):
            raise InputError(f"{name}: expected {values}, that of the weights, got {requested}; leave {name} out")
        options[name] = values
    return options


def _chosen_preprocessing(kwargs: dict[str, Any]) -> Preprocessing:
    """What a fresh detector expects: the given ``image_mean`` and ``image_std``, else torchvision's."""
    fields: dict[str, Any] = {"color": "RGB", "mean": TORCHVISION.mean, "std": TORCHVISION.std}
    for name in ("mean", "std"):
        if (requested := kwargs.get(f"image_{name}")) is not None:
            fields[name] = [value * 255 for value in requested]
    return Preprocessing(**fields)

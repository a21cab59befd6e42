"""Faster, Mask and Keypoint R-CNN on a compressed ResNet-50-FPN, with torchvision's keyword arguments.

With ``spec="dense"`` they are torchvision's ``fasterrcnn_resnet50_fpn`` and so on, parameter for parameter.
NORTON section IV: the compressed ImageNet network is the backbone, the detector is then trained as usual.
"""

import inspect
import math
from pathlib import Path
from typing import Any

from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN

from ..models.description import NetworkInfo
from ..models.factorize import apply_layout
from ..models.preprocessing import TORCHVISION, Preprocessing
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..models.state import load_state
from ..utils.errors import InputError
from .backbone import backbone_weights, choose_spec, resnet_fpn
from .weights import DetectorInfo, load_detector_state, read_detector_info

DEFAULT_SPEC = "norton-78"
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
    return _build("faster", 91, spec, weights, num_classes, None, weights_backbone, trainable_backbone_layers, kwargs)


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
    return _build("mask", 91, spec, weights, num_classes, None, weights_backbone, trainable_backbone_layers, kwargs)


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
        "keypoint",
        2,
        spec,
        weights,
        num_classes,
        num_keypoints,
        weights_backbone,
        trainable_backbone_layers,
        kwargs,
    )


BUILDERS = {
    "faster": fasterrcnn_norton_resnet50_fpn,
    "mask": maskrcnn_norton_resnet50_fpn,
    "keypoint": keypointrcnn_norton_resnet50_fpn,
}


def _build(
    kind: str,
    default_classes: int,
    spec: str | CompressionSpec | None,
    weights: str | Path | None,
    num_classes: int | None,
    num_keypoints: int | None,
    weights_backbone: str | Path | NortonResNet | None,
    trainable_layers: int | None,
    kwargs: dict[str, Any],
) -> Any:
    _check_names(kind, kwargs)
    state, source = None, ""
    if weights is not None:
        info = _stored(kind, weights)
        num_classes = _agreed("num_classes", num_classes, info.num_classes)
        num_keypoints = _agreed("num_keypoints", num_keypoints, info.num_keypoints)
        backbone = info.backbone
        choose_spec(spec, backbone.spec, DEFAULT_SPEC)
    elif weights_backbone is not None:
        backbone, state, source = backbone_weights(weights_backbone)
        choose_spec(spec, backbone.spec, DEFAULT_SPEC)
    else:
        backbone = NetworkInfo(choose_spec(spec, None, DEFAULT_SPEC), _chosen_preprocessing(kwargs), 0)
    num_classes = default_classes if num_classes is None else num_classes
    options = kwargs | _normalisation(backbone.preprocessing, kwargs)
    if kind == "keypoint":
        num_keypoints = 17 if num_keypoints is None else num_keypoints
        options["num_keypoints"] = num_keypoints

    trained = weights is not None or weights_backbone is not None
    body = resnet_fpn(backbone, trained, trainable_layers)
    if state is not None:
        load_state(body.body, state, source)
    model = DETECTORS[kind](body, num_classes, **options)
    if weights is not None:
        apply_layout(model, backbone.layout, "empty")
        load_detector_state(model, weights)
    model.norton_info = DetectorInfo(kind, backbone, num_classes, num_keypoints)
    return model


def _stored(kind: str, weights: str | Path) -> DetectorInfo:
    if not isinstance(weights, str | Path):
        raise InputError(
            f"weights: expected the path of a file of save_detector, got {type(weights).__name__}; "
            "torchvision's own weights fit only the dense detector: load_state_dict them there"
        )
    info = read_detector_info(weights)
    if info.kind != kind:
        raise InputError(f"{weights}: expected a {kind} detector, got {info.kind}; use the builder of that kind")
    return info


def _agreed(name: str, given: int | None, stored: int | None) -> int | None:
    if given is not None and given != stored:
        raise InputError(f"{name}: expected {stored}, that of the weights, got {given}; leave {name} out")
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
        given = kwargs.get(name)
        if given is not None and not (len(given) == 3 and all(map(math.isclose, given, values))):
            raise InputError(f"{name}: expected {values}, that of the weights, got {given}; leave {name} out")
        options[name] = values
    return options


def _chosen_preprocessing(kwargs: dict[str, Any]) -> Preprocessing:
    """What a fresh detector expects: the given ``image_mean`` and ``image_std``, else torchvision's."""
    fields: dict[str, Any] = {"color": "RGB", "mean": TORCHVISION.mean, "std": TORCHVISION.std}
    for name in ("mean", "std"):
        if (given := kwargs.get(f"image_{name}")) is not None:
            fields[name] = [value * 255 for value in given]
    return Preprocessing(**fields)

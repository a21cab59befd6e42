"""What ``compress_detector`` has to know of torchvision's R-CNNs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import KeypointRCNN, MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from ..models.description import NetworkInfo
from ..models.preprocessing import Preprocessing
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..utils.errors import InputError
from .detectors import load_torchvision_detector as load_torchvision_detector
from .weights import DetectorInfo

GROUPS = ("conv1", "bn1", *(f"layer{stage}" for stage in range(1, 5)))


def preprocessing_of(detector: nn.Module) -> Preprocessing:
    """Colour order and normalisation."""
    transform = detector.transform
    mean, std = (tuple(255 * value for value in values) for values in (transform.image_mean, transform.image_std))
    return Preprocessing("RGB", mean, std)


def replace_resnet(
    detector: nn.Module, spec: CompressionSpec, stride_in_1x1: bool, preprocessing: Preprocessing
) -> None:
    """Put a fresh ``NortonResNet`` below the FPN, in place: the same normalisation, the same parts frozen.

    Raises:
        InputError: no FPN of torchvision's making.
    """
    old = getattr(detector.backbone, "body", None)
    if not isinstance(old, IntermediateLayerGetter):
        raise InputError(
            f"backbone: expected a ResNet with FPN, got {type(detector.backbone).__name__}; use such a one"
        )
    norms = [module for module in old.modules() if isinstance(getattr(module, "running_var", None), Tensor)]
    live = any(not isinstance(module, FrozenBatchNorm2d) for module in norms)
    new = NortonResNet(spec, 0, stride_in_1x1, nn.BatchNorm2d if live else FrozenBatchNorm2d)
    for module in new.modules():
        if norms and isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.eps = norms[0].eps  # type: ignore[assignment]
    for name in GROUPS:
        trained = [parameter.requires_grad for parameter in old[name].parameters()]
        new.get_submodule(name).requires_grad_(any(trained))
    new.to(next(detector.parameters()).device)
    detector.backbone.body = IntermediateLayerGetter(new, dict(old.return_layers)).train(old.training)


def check_image(image: object) -> str:
    """What is wrong with a calibration image; empty if nothing is."""
    if not isinstance(image, Tensor) or image.ndim != 3 or len(image) != 3 or not image.is_floating_point():
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        return f"a float tensor (3, H, W) in 0..1, got {got}"
    if image.isfinite().all() and not -0.01 <= float(image.min()) <= float(image.max()) <= 1.01:
        return f"values in 0..1, got {float(image.min()):g} to {float(image.max()):g}"
    return ""


def to_input(image: np.ndarray) -> Tensor:
    """A picture (H, W, 3), RGB, uint8, as torchvision's detectors take it: (3, H, W) in 0..1; they resize it."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def preprocess(detector: nn.Module, images: Sequence[Tensor]) -> Any:
    """torchvision's ``ImageList`` of images (3, H, W) in 0..1."""
    return detector.transform(list(images))[0]


def image_list(pixels: Tensor) -> Any:
    """torchvision's ``ImageList`` of pixels (N, 3, H, W) that are preprocessed already."""
    return ImageList(pixels, [tuple(pixels.shape[2:])] * len(pixels))


def noise(size: tuple[int, int, int]) -> Tensor:
    """An image of noise (3, H, W) as the detector takes it."""
    return torch.rand(size, generator=torch.Generator().manual_seed(0))


def image_features(detector: nn.Module, images: Sequence[Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The preprocessed images, and the feature maps that the FPN gives for them."""
    batch = preprocess(detector, images)
    return batch, detector.backbone(batch.tensors)


def propose(detector: nn.Module, images: Any, features: dict[str, Tensor]) -> Tensor:
    """Proposals of one image, (P, 4) xyxy in pixels."""
    return detector.rpn(images, features)[0][0]


def detect(detector: nn.Module, images: Any, features: dict[str, Tensor], proposals: Tensor) -> Tensor:
    """Boxes (P, 4) that the box head finds in one image."""
    heads = detector.roi_heads
    pooled = pool(detector, "box", images, features, proposals)
    scores, deltas = heads.box_predictor(heads.box_head(pooled))
    return heads.postprocess_detections(scores, deltas, [proposals], images.image_sizes)[0][0]


def pool(detector: nn.Module, head: str, images: Any, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """Features (P, C, S, S) of regions of one image for a head: box, mask or keypoint."""
    return getattr(detector.roi_heads, f"{head}_roi_pool")(features, [boxes], images.image_sizes)


def head_of(detector: nn.Module, head: str) -> Callable[[Tensor], Any]:
    """The layers of a head as a function of pooled features."""
    return getattr(detector.roi_heads, f"{head}_head")


def has_norton_resnet(detector: nn.Module) -> bool:
    """Whether the ResNet need not be replaced where it stays as it is: torchvision's has the same names."""
    return isinstance(getattr(detector.backbone, "body", None), IntermediateLayerGetter)


def finish(detector: nn.Module, info: NetworkInfo) -> None:
    """Note what ``save_detector`` has to write."""
    heads = detector.roi_heads
    kind = "keypoint" if isinstance(detector, KeypointRCNN) else "mask" if isinstance(detector, MaskRCNN) else "faster"
    keypoints = heads.keypoint_predictor.kps_score_lowres.out_channels if kind == "keypoint" else None
    detector.norton_info = DetectorInfo(kind, info, heads.box_predictor.cls_score.out_features, keypoints)

"""What ``compress_detector`` has to know of Detectron2's R-CNNs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import FPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..models.description import NetworkInfo
from ..models.preprocessing import Preprocessing
from ..models.spec import CompressionSpec
from ..utils.errors import InputError
from .backbone import NortonResNetBackbone

GROUPS = (("stem", "conv1", "bn1"), *((f"res{stage + 1}", f"layer{stage}") for stage in range(1, 5)))


def preprocessing_of(detector: nn.Module) -> Preprocessing:
    """Colour order and normalisation."""
    mean, std = (getattr(detector, name).flatten().tolist() for name in ("pixel_mean", "pixel_std"))
    return Preprocessing(getattr(detector, "input_format", None) or "BGR", tuple(mean), tuple(std))


def replace_resnet(
    detector: nn.Module, spec: CompressionSpec, stride_in_1x1: bool, preprocessing: Preprocessing
) -> None:
    """Put a fresh ``NortonResNetBackbone`` below the FPN, in place: the same normalisation, the same parts frozen.

    Raises:
        InputError: no FPN, or a normalisation without statistics.
    """
    fpn = detector.backbone
    if not isinstance(fpn, FPN):
        raise InputError(f"backbone: expected an FPN, got {type(fpn).__name__}; use a detector with FPN")
    old = fpn.bottom_up
    frozen = 0
    for group in GROUPS:
        parameters = [p for name in group if hasattr(old, name) for p in getattr(old, name).parameters()]
        if any(parameter.requires_grad for parameter in parameters):
            break
        frozen += 1
    info = NetworkInfo(spec, preprocessing, 0, stride_in_1x1)
    new = NortonResNetBackbone(info, _norm_of(old), tuple(old.output_shape()), frozen)
    fpn.bottom_up = new.to(next(fpn.parameters()).device).train(old.training)


def check_image(image: object) -> str:
    """What is wrong with a calibration image; empty if nothing is."""
    pixels = image.get("image") if isinstance(image, dict) else None
    if not isinstance(pixels, Tensor) or pixels.ndim != 3 or len(pixels) != 3:
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(image if pixels is None else pixels).__name__
        return f'a dict whose "image" is a tensor (3, H, W) in 0..255, got {got}'
    return ""


def preprocess(detector: nn.Module, images: Sequence[Any]) -> Any:
    """Detectron2's ``ImageList`` of inputs such as ``{"image": (3, H, W)}``."""
    return detector.preprocess_image(images)


def image_list(pixels: Tensor) -> Any:
    """Detectron2's ``ImageList`` of pixels (N, 3, H, W) that are preprocessed already."""
    return ImageList(pixels, [tuple(pixels.shape[2:])] * len(pixels))


def noise(size: tuple[int, int, int]) -> dict[str, Tensor]:
    """An image of noise (3, H, W) as the detector takes it."""
    return {"image": 255 * torch.rand(size, generator=torch.Generator().manual_seed(0))}


def image_features(detector: nn.Module, images: Sequence[Any]) -> tuple[Any, dict[str, Tensor]]:
    """The preprocessed images, and the feature maps that the FPN gives for them."""
    batch = preprocess(detector, images)
    return batch, detector.backbone(batch.tensor)


def propose(detector: nn.Module, images: Any, features: dict[str, Tensor]) -> Tensor:
    """Proposals of one image, (P, 4) xyxy in pixels."""
    return detector.proposal_generator(images, features, None)[0][0].proposal_boxes.tensor


def detect(detector: nn.Module, images: Any, features: dict[str, Tensor], proposals: Tensor) -> Tensor:
    """Boxes (P, 4) that the box head finds in one image."""
    given = Instances(images.image_sizes[0], proposal_boxes=Boxes(proposals))
    given.objectness_logits = torch.zeros(len(proposals), device=proposals.device)
    return detector.roi_heads._forward_box(features, [given])[0].pred_boxes.tensor


def pool(detector: nn.Module, head: str, images: Any, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """Features (P, C, S, S) of regions of one image for a head: box, mask or keypoint."""
    heads = detector.roi_heads
    maps = [features[name] for name in getattr(heads, f"{head}_in_features")]
    return getattr(heads, f"{head}_pooler")(maps, [Boxes(boxes)])


def head_of(detector: nn.Module, head: str) -> Callable[[Tensor], Any]:
    """The layers of a head as a function of pooled features."""
    module = getattr(detector.roi_heads, f"{head}_head")
    if isinstance(module, nn.ModuleList):  # a cascade: every stage gets the regions of the first
        return lambda pooled: [stage(pooled) for stage in module]
    return module if head == "box" else module.layers


def has_norton_resnet(detector: nn.Module) -> bool:
    """Whether the ResNet is ours, so that it need not be replaced where it stays as it is."""
    return isinstance(getattr(detector.backbone, "bottom_up", None), NortonResNetBackbone)


def finish(detector: nn.Module, info: NetworkInfo) -> None:
    """Nothing more: checkpoints read what they say off the detector."""


def _norm_of(resnet: nn.Module) -> str:
    """Detectron2's name of the normalisation of the last stage."""
    last = [
        module for name, module in resnet.named_modules() if name.startswith(("res5", "layer4")) and _has_mean(module)
    ]
    if not last:
        raise InputError("backbone: expected batch normalisation, got another one; use BN, SyncBN or FrozenBN")
    norm = last[-1]
    if isinstance(norm, FrozenBatchNorm2d):
        return "FrozenBN"
    return "SyncBN" if "Sync" in type(norm).__name__ else "BN"


def _has_mean(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), torch.Tensor)

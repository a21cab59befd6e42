"""The contract of a detection stack (``models/stacks``) for torchvision's R-CNNs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import KeypointRCNN, MaskRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, heatmaps_to_keypoints, paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from ..models.description import NetworkInfo, network_of
from ..models.factorize import apply_layout, find_layout
from ..models.input_size import floor_size, input_size
from ..models.labels import labels_of
from ..models.preprocessing import Preprocessing
from ..models.rcnn import FeatureMaps, ImageBatch, RCNNParts, TestSettings
from ..models.resnet import NortonResNet
from ..models.stacks import HEADS, DetectionStack
from ..models.state import is_counter
from ..utils.errors import InputError
from .deploy import parts_of, resize
from .detectors import build_fresh, load_torchvision_detector
from .settings import settings_of
from .weights import DetectorInfo

GROUPS = ("conv1", "bn1", *(f"layer{stage}" for stage in range(1, 5)))


class TorchvisionStack(DetectionStack):
    """Faster, Mask and Keypoint R-CNN of torchvision; images are tensors (3, H, W) in 0..1."""

    name = "torchvision"
    title = "torchvision"
    first_label = 1

    def load_detector(self, weights: str, config: str | None = None, opts: Sequence[str] = ()) -> nn.Module:
        if config is not None or opts:
            raise InputError(f"{weights}: expected no config beside weights of torchvision, got one; leave it out")
        return load_torchvision_detector(weights)

    def detector_fields(self, detector: GeneralizedRCNN, config: Any = None) -> dict[str, Any]:
        """A detector of torchvision's needs no config."""
        labels = labels_of(detector)
        info = replace(_describe(detector, self.network_info(detector)), settings=settings_of(detector), labels=labels)
        labels.check("detector", info.num_classes - 1, info.num_keypoints)
        with torch.device("meta"):
            again = apply_layout(build_fresh(info), info.backbone.layout, "empty")
        kept, expected = (
            {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not is_counter(name)}
            for model in (again, detector)
        )
        different = sorted(set(kept.items()) ^ set(expected.items()))
        if different or settings_of(again) != info.settings:
            what = different[0][0] if different else "its settings"
            raise InputError(
                f"detector: expected what torchvision's builders make on a ResNet with FPN, got another ({what}); save "
                "its state_dict yourself"
            )
        return info.to_fields()

    def preprocessing_of(self, detector: GeneralizedRCNN) -> Preprocessing:
        transform = detector.transform
        mean, std = (tuple(255 * value for value in values) for values in (transform.image_mean, transform.image_std))
        return Preprocessing("RGB", mean, std)

    def size_divisor(self, detector: GeneralizedRCNN) -> int:
        return max(1, detector.transform.size_divisible)

    def resnet_of(self, detector: GeneralizedRCNN) -> nn.Module | None:
        return getattr(detector.backbone, "body", None)

    def has_norton_resnet(self, detector: GeneralizedRCNN) -> bool:
        """torchvision's own ResNet has the same names."""
        return isinstance(self.resnet_of(detector), IntermediateLayerGetter)

    def replace_resnet(self, detector: GeneralizedRCNN, info: NetworkInfo) -> None:
        old = self.resnet_of(detector)
        if not isinstance(old, IntermediateLayerGetter):
            raise InputError(
                f"backbone: expected a ResNet with FPN, got {type(detector.backbone).__name__}; use such a one"
            )
        norms = [module for module in old.modules() if isinstance(getattr(module, "running_var", None), Tensor)]
        live = any(not isinstance(module, FrozenBatchNorm2d) for module in norms)
        new = NortonResNet(info.spec, 0, info.stride_in_1x1, nn.BatchNorm2d if live else FrozenBatchNorm2d)
        for module in new.modules():
            if norms and isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                module.eps = norms[0].eps
        for name in GROUPS:
            trained = [parameter.requires_grad for parameter in old[name].parameters()]
            new.get_submodule(name).requires_grad_(any(trained))
        new.to(next(detector.parameters()).device)
        detector.backbone.body = IntermediateLayerGetter(new, dict(old.return_layers)).train(old.training)

    def network_info(self, detector: GeneralizedRCNN) -> NetworkInfo:
        info = getattr(detector, "norton_info", None)
        if isinstance(info, DetectorInfo):
            return replace(info.backbone, layout=find_layout(detector))
        return network_of(detector, self.preprocessing_of(detector))

    def attach_info(self, detector: GeneralizedRCNN, info: NetworkInfo) -> None:
        """``network_info`` reads ``norton_info``."""
        detector.norton_info = _describe(detector, info)

    def num_classes(self, detector: GeneralizedRCNN) -> int:
        return detector.roi_heads.box_predictor.cls_score.out_features - 1

    def num_keypoints(self, detector: GeneralizedRCNN) -> int:
        heads = detector.roi_heads
        return heads.keypoint_predictor.kps_score_lowres.out_channels if heads.has_keypoint() else 0

    def heads_of(self, detector: GeneralizedRCNN) -> tuple[str, ...]:
        return tuple(head for head in HEADS if getattr(detector.roi_heads, f"{head}_head", None) is not None)

    def check_image(self, image: object) -> str:
        if not isinstance(image, Tensor) or image.ndim != 3 or len(image) != 3 or not image.is_floating_point():
            got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            return f"a float tensor (3, H, W) in 0..1, got {got}"
        if image.isfinite().all() and not -0.01 <= float(image.min()) <= float(image.max()) <= 1.01:
            return f"values in 0..1, got {float(image.min()):g} to {float(image.max()):g}"
        return ""

    def noise_image(self, size: tuple[int, int, int]) -> Tensor:
        return torch.rand(size, generator=torch.Generator().manual_seed(0))

    def to_input(self, detector: GeneralizedRCNN) -> Callable[[np.ndarray], Tensor]:
        """(3, H, W) in 0..1; the detector itself resizes it."""
        return partial(to_input, transform=detector.transform)

    def preprocess(self, detector: GeneralizedRCNN, images: Sequence[Tensor]) -> ImageBatch:
        batch = detector.transform(list(images))[0]
        return ImageBatch(batch.tensors, batch.image_sizes)

    def feature_maps(self, detector: GeneralizedRCNN, pixels: Tensor) -> FeatureMaps:
        maps = detector.backbone(pixels)
        return {"0": maps} if isinstance(maps, Tensor) else maps

    def rpn_outputs(self, detector: GeneralizedRCNN, features: FeatureMaps) -> tuple[list[Tensor], list[Tensor]]:
        return detector.rpn.head(list(features.values()))

    def propose(self, detector: GeneralizedRCNN, batch: ImageBatch, features: FeatureMaps) -> Tensor:
        return detector.rpn(ImageList(batch.pixels, batch.sizes), features)[0][0]

    def pooling_of(self, detector: GeneralizedRCNN, head: str) -> tuple[tuple[str, ...], tuple[int, int]]:
        pooler = getattr(detector.roi_heads, f"{head}_roi_pool")
        side = pooler.output_size
        return tuple(pooler.featmap_names), (side, side) if isinstance(side, int) else tuple(side)

    def pool(
        self, detector: GeneralizedRCNN, head: str, batch: ImageBatch, features: FeatureMaps, boxes: Tensor
    ) -> Tensor:
        return getattr(detector.roi_heads, f"{head}_roi_pool")(features, [boxes], batch.sizes)

    def head_layers(self, detector: GeneralizedRCNN, head: str) -> Callable[[Tensor], Any]:
        return getattr(detector.roi_heads, f"{head}_head")

    def head_outputs(self, detector: GeneralizedRCNN, head: str, pooled: Tensor) -> list[Tensor]:
        predictor = getattr(detector.roi_heads, f"{head}_predictor")
        outputs = predictor(self.head_layers(detector, head)(pooled))
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    def detect_boxes(
        self, detector: GeneralizedRCNN, batch: ImageBatch, features: FeatureMaps, proposals: Tensor
    ) -> Tensor:
        scores, deltas = self.head_outputs(detector, "box", self.pool(detector, "box", batch, features, proposals))
        return detector.roi_heads.postprocess_detections(scores, deltas, [proposals], batch.sizes)[0][0]

    def parts_of(self, detector: GeneralizedRCNN) -> RCNNParts:
        return parts_of(detector, self.preprocessing_of(detector))

    def test_settings(self, detector: GeneralizedRCNN) -> TestSettings:
        transform = detector.transform
        if transform.fixed_size is not None or getattr(transform, "_skip_resize", False):
            raise InputError(
                "transform: expected min_size and max_size, got fixed_size or _skip_resize; leave them out"
            )
        proposals = detector.rpn._post_nms_top_n["testing"]
        return TestSettings(int(transform.min_size[-1]), int(transform.max_size), proposals)

    def resize(self, image: Tensor, min_size: int, max_size: int) -> Tensor:
        return resize(image, min_size, max_size)

    def keypoints_from(self, heatmaps: Tensor, boxes: Tensor) -> Tensor:
        return _with_scores(*heatmaps_to_keypoints(heatmaps, boxes))

    def paste_masks(self, masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
        return paste_masks_in_image(masks, boxes, (height, width))[:, 0] >= 0.5

    def detect_picture(
        self, detector: GeneralizedRCNN, picture: np.ndarray, min_size: int, max_size: int
    ) -> dict[str, np.ndarray]:
        outputs = {name: value.cpu() for name, value in _run(detector, picture, min_size, max_size)[0].items()}
        fields = {name: outputs[name].numpy() for name in ("boxes", "scores", "labels")}
        if "masks" in outputs:
            fields["masks"] = (outputs["masks"][:, 0] >= 0.5).numpy()
        if "keypoints" in outputs:
            fields["keypoints"] = _with_scores(outputs["keypoints"], outputs["keypoints_scores"]).numpy()
        return fields

    def native_call(self, detector: GeneralizedRCNN, picture: np.ndarray) -> Callable[[], Any]:
        return lambda: _run(detector, picture, 0, 0)

    def native_parts(self, detector: GeneralizedRCNN) -> dict[str, nn.Module]:
        return {"backbone": detector.backbone, "rpn": detector.rpn, "roi_heads": detector.roi_heads}

    def training_call(
        self, detector: GeneralizedRCNN, images: Tensor, boxes: list[Tensor]
    ) -> Callable[[], dict[str, Tensor]]:
        device = next(detector.parameters()).device
        targets = [_targets(detector.roi_heads, image_boxes, images.shape[2:]) for image_boxes in boxes]
        targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
        inputs = list(images.to(device))
        return lambda: detector(inputs, targets)


def _with_scores(keypoints: Tensor, scores: Tensor) -> Tensor:
    """Keypoints (P, K, 3) as x, y, score of (P, K, 3) as x, y, visibility and scores (P, K)."""
    return torch.cat([keypoints[..., :2], scores[..., None]], 2)


def _describe(detector: GeneralizedRCNN, backbone: NetworkInfo) -> DetectorInfo:
    """What a detector is by its class and its heads; settings and labels are left out."""
    stack = TorchvisionStack()
    kinds = {"keypoint": KeypointRCNN, "mask": MaskRCNN}
    kind = next((kind for kind, cls in kinds.items() if isinstance(detector, cls)), "faster")
    keypoints = stack.num_keypoints(detector) if kind == "keypoint" else None
    return DetectorInfo(kind, backbone, stack.num_classes(detector) + 1, keypoints)


def _run(detector: GeneralizedRCNN, picture: np.ndarray, min_size: int, max_size: int) -> list[dict[str, Tensor]]:
    """What the detector gives for a picture (H, W, 3), uint8, RGB; sizes, see ``resize``, come before its own."""
    image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 255
    if min_size == 0:  # not resized
        min_size, max_size = min(picture.shape[:2]), max(picture.shape[:2])
    input_size(picture.shape[0], picture.shape[1], min_size, max_size, floor_size)  # raises where it is too thin
    kept = detector.transform
    detector.transform = copy.copy(kept)
    detector.transform.min_size, detector.transform.max_size = (min_size,), max_size
    try:
        return detector([image.to(next(detector.parameters()).device)])
    finally:
        detector.transform = kept


def _targets(heads: RoIHeads, boxes: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
    """Targets of an image of that size (H, W): boxes (P, 4), with filled masks and keypoints where heads have such."""
    count = len(boxes)
    targets = {"boxes": boxes, "labels": torch.ones(count, dtype=torch.long)}
    if heads.has_mask():
        targets["masks"] = _filled(boxes, *size).to(torch.uint8)
    if heads.has_keypoint():
        points = heads.keypoint_predictor.kps_score_lowres.out_channels
        middle = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
        targets["keypoints"] = torch.cat([middle, torch.ones(count, 1, 1)], 2).repeat(1, points, 1)
    return targets


def _filled(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks (P, H, W) of boxes (P, 4)."""
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None]
    left, top, right, bottom = (side[:, None, None] for side in boxes.unbind(1))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def to_input(image: np.ndarray, transform: GeneralizedRCNNTransform | None = None) -> Tensor:
    """A picture (H, W, 3), RGB, uint8, as torchvision's detectors take it: (3, H, W) in 0..1; they resize it.

    Raises:
        ThinPicture: the detector's own ``transform`` would leave no pixel of it.
    """
    if transform is not None:
        input_size(image.shape[0], image.shape[1], transform.min_size[-1], transform.max_size, floor_size)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

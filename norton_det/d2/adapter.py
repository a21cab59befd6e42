"""The contract of a detection stack (``models/stacks``) for Detectron2's R-CNNs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling import FPN
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances, Keypoints, PolygonMasks
from detectron2.structures.keypoints import heatmaps_to_keypoints
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..checkpoint.opened import open_weights, reading_once
from ..models.description import NetworkInfo, network_of
from ..models.preprocessing import Preprocessing
from ..models.rcnn import FeatureMaps, ImageBatch, RCNNParts, TestSettings
from ..models.stacks import HEADS, DetectionStack
from ..utils.errors import InputError
from .backbone import NortonResNetBackbone
from .build import build_detector, image_maker, load_config, load_detector
from .checkpoint import info_of_model
from .deploy import parts_of, resize
from .description import config_of, config_on, detector_fields, tell_differences

GROUPS = (("stem", "conv1", "bn1"), *((f"res{stage + 1}", f"layer{stage}") for stage in range(1, 5)))
FIELDS = {"scores": "scores", "pred_classes": "labels", "pred_masks": "masks", "pred_keypoints": "keypoints"}


class Detectron2Stack(DetectionStack):
    """Faster, Mask, Keypoint and Cascade R-CNN of Detectron2; images are dicts with "image" (3, H, W) in 0..255."""

    name = "detectron2"
    title = "Detectron2"
    first_label = 0

    def load_detector(self, weights: str, config: str | None = None, opts: Sequence[str] = ()) -> nn.Module:
        with reading_once():
            if config is None:
                if not weights:
                    raise InputError("expected a config or weights of Detectron2, got neither; give --config")
                return load_detector(config_of(open_weights(weights), opts))
            cfg = load_config(config, [*opts, "MODEL.WEIGHTS", weights])
            if not weights:
                return build_detector(cfg).eval()
            tell_differences(cfg, open_weights(weights))
            return load_detector(cfg)

    def detector_fields(self, detector: GeneralizedRCNN, config: Any = None) -> dict[str, Any]:
        return detector_fields(detector, self.network_info(detector), config)

    def preprocessing_of(self, detector: GeneralizedRCNN) -> Preprocessing:
        mean, std = (getattr(detector, name).flatten().tolist() for name in ("pixel_mean", "pixel_std"))
        return Preprocessing(getattr(detector, "input_format", None) or "BGR", tuple(mean), tuple(std))

    def size_divisor(self, detector: GeneralizedRCNN) -> int:
        return max(1, detector.backbone.size_divisibility)

    def resnet_of(self, detector: GeneralizedRCNN) -> nn.Module | None:
        return getattr(detector.backbone, "bottom_up", None)

    def has_norton_resnet(self, detector: GeneralizedRCNN) -> bool:
        return isinstance(self.resnet_of(detector), NortonResNetBackbone)

    def replace_resnet(self, detector: GeneralizedRCNN, info: NetworkInfo) -> None:
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
        new = NortonResNetBackbone(info, _norm_of(old), tuple(old.output_shape()), frozen)
        fpn.bottom_up = new.to(next(fpn.parameters()).device).train(old.training)

    def network_info(self, detector: GeneralizedRCNN) -> NetworkInfo:
        return info_of_model(detector) or network_of(detector, self.preprocessing_of(detector))

    def attach_info(self, detector: GeneralizedRCNN, info: NetworkInfo) -> None:
        """Nothing: ``network_info`` reads what it says off the detector."""

    def num_classes(self, detector: GeneralizedRCNN) -> int:
        return int(detector.roi_heads.num_classes)

    def num_keypoints(self, detector: GeneralizedRCNN) -> int:
        head = getattr(detector.roi_heads, "keypoint_head", None)
        return 0 if head is None else int(head.num_keypoints)

    def heads_of(self, detector: GeneralizedRCNN) -> tuple[str, ...]:
        heads = detector.roi_heads
        names = [head for head in HEADS if getattr(heads, f"{head}_head", None) is not None]
        c4 = hasattr(heads, "res5")  # a stage of the ResNet in the place of a box head
        return ("box", *names) if c4 else tuple(names)

    def check_image(self, image: object) -> str:
        pixels = image.get("image") if isinstance(image, dict) else None
        if isinstance(pixels, Tensor) and pixels.ndim == 3 and len(pixels) == 3:
            return ""
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(image if pixels is None else pixels).__name__
        return f'a dict whose "image" is a tensor (3, H, W) in 0..255, got {got}'

    def noise_image(self, size: tuple[int, int, int]) -> dict[str, Tensor]:
        return {"image": 255 * torch.rand(size, generator=torch.Generator().manual_seed(0))}

    def to_input(self, detector: GeneralizedRCNN) -> Callable[[np.ndarray], dict[str, Any]]:
        settings = self.test_settings(detector)
        return image_maker(self.preprocessing_of(detector).color, settings.min_size, settings.max_size)

    def preprocess(self, detector: GeneralizedRCNN, images: Sequence[dict[str, Any]]) -> ImageBatch:
        batch = detector.preprocess_image(images)
        return ImageBatch(batch.tensor, batch.image_sizes)

    def feature_maps(self, detector: GeneralizedRCNN, pixels: Tensor) -> FeatureMaps:
        return detector.backbone(pixels)

    def rpn_outputs(self, detector: GeneralizedRCNN, features: FeatureMaps) -> tuple[list[Tensor], list[Tensor]]:
        rpn = detector.proposal_generator
        return rpn.rpn_head([features[name] for name in rpn.in_features])

    def propose(self, detector: GeneralizedRCNN, batch: ImageBatch, features: FeatureMaps) -> Tensor:
        images = ImageList(batch.pixels, batch.sizes)
        return detector.proposal_generator(images, features, None)[0][0].proposal_boxes.tensor

    def pooling_of(self, detector: GeneralizedRCNN, head: str) -> tuple[tuple[str, ...], tuple[int, int]]:
        names, pooler = _pooler(detector, head)
        return names, tuple(pooler.output_size)

    def pool(
        self, detector: GeneralizedRCNN, head: str, batch: ImageBatch, features: FeatureMaps, boxes: Tensor
    ) -> Tensor:
        names, pooler = _pooler(detector, head)
        return pooler([features[name] for name in names], [Boxes(boxes)])

    def head_layers(self, detector: GeneralizedRCNN, head: str) -> Callable[[Tensor], Any]:
        module = getattr(detector.roi_heads, f"{head}_head")
        if isinstance(module, nn.ModuleList):  # a cascade: every stage gets the regions of the first
            return lambda pooled: [stage(pooled) for stage in module]
        return module if head == "box" else module.layers

    def head_outputs(self, detector: GeneralizedRCNN, head: str, pooled: Tensor) -> list[Tensor]:
        heads = detector.roi_heads
        shared = getattr(heads, "res5", None)
        if shared is not None:
            pooled = shared(pooled)
        if head != "box":
            return [getattr(heads, f"{head}_head").layers(pooled)]
        if shared is not None:
            return list(heads.box_predictor(pooled.mean(dim=(2, 3))))
        layers, predictors = heads.box_head, heads.box_predictor
        if not isinstance(predictors, nn.ModuleList):
            return list(predictors(layers(pooled)))
        stages = zip(layers, predictors, strict=True)
        return [output for stage, predictor in stages for output in predictor(stage(pooled))]

    def detect_boxes(
        self, detector: GeneralizedRCNN, batch: ImageBatch, features: FeatureMaps, proposals: Tensor
    ) -> Tensor:
        regions = Instances(batch.sizes[0], proposal_boxes=Boxes(proposals))
        regions.objectness_logits = torch.zeros(len(proposals), device=proposals.device)
        return detector.roi_heads._forward_box(features, [regions])[0].pred_boxes.tensor

    def parts_of(self, detector: GeneralizedRCNN) -> RCNNParts:
        return parts_of(detector, self.preprocessing_of(detector), self.size_divisor(detector))

    def test_settings(self, detector: GeneralizedRCNN) -> TestSettings:
        """Sizes are those of its config; where it knows none, Detectron2's defaults."""
        cfg = config_on(detector)
        short, longest = (800, 1333) if cfg is None else (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        return TestSettings(short, longest, detector.proposal_generator.post_nms_topk[False])

    def resize(self, image: Tensor, min_size: int, max_size: int) -> Tensor:
        return resize(image, min_size, max_size)

    def keypoints_from(self, heatmaps: Tensor, boxes: Tensor) -> Tensor:
        try:
            return heatmaps_to_keypoints(heatmaps, boxes)[:, :, [0, 1, 3]]
        except AssertionError:  # Detectron2's own check, without a word
            raise InputError(
                "keypoints: expected heatmaps that make sense, got extreme ones; train the detector"
            ) from None

    def paste_masks(self, masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
        return paste_masks_in_image(masks[:, 0], boxes, (height, width))

    def detect_picture(
        self, detector: GeneralizedRCNN, picture: np.ndarray, min_size: int, max_size: int
    ) -> dict[str, np.ndarray]:
        image = {"image": resize(_to_tensor(picture), min_size, max_size)}
        size = {"height": picture.shape[0], "width": picture.shape[1]}
        instances = detector([image | size])[0]["instances"].to("cpu").get_fields()
        fields = {field: instances[name].numpy() for name, field in FIELDS.items() if name in instances}
        return {"boxes": instances["pred_boxes"].tensor.numpy()} | fields

    def native_call(self, detector: GeneralizedRCNN, picture: np.ndarray) -> Callable[[], Any]:
        size = {"height": picture.shape[0], "width": picture.shape[1]}
        pixels = picture if detector.input_format == "RGB" else picture[:, :, ::-1]
        return lambda: detector([{"image": _to_tensor(pixels)} | size])

    def native_parts(self, detector: GeneralizedRCNN) -> dict[str, nn.Module]:
        return {"backbone": detector.backbone, "rpn": detector.proposal_generator, "roi_heads": detector.roi_heads}

    def training_call(
        self, detector: GeneralizedRCNN, images: Tensor, boxes: list[Tensor]
    ) -> Callable[[], dict[str, Tensor]]:
        targets = [_instances(detector.roi_heads, image_boxes, images.shape[2:]) for image_boxes in boxes]
        inputs = [{"image": 255 * image, "instances": target} for image, target in zip(images, targets, strict=True)]

        def call() -> dict[str, Tensor]:
            with EventStorage():
                return detector(inputs)

        return call


def _norm_of(resnet: nn.Module) -> str:
    """Detectron2's name of the normalisation of the last stage."""
    norms = [
        module for name, module in resnet.named_modules() if name.startswith(("res5", "layer4")) and _has_mean(module)
    ]
    if not norms:
        raise InputError("backbone: expected batch normalisation, got another one; use BN, SyncBN or FrozenBN")
    if isinstance(norms[-1], FrozenBatchNorm2d):
        return "FrozenBN"
    return "SyncBN" if "Sync" in type(norms[-1]).__name__ else "BN"


def _has_mean(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), torch.Tensor)


def _pooler(detector: GeneralizedRCNN, head: str) -> tuple[tuple[str, ...], ROIPooler]:
    """Names of the maps that a head's regions are pooled from, and the pooler; C4 models have one for all heads."""
    heads = detector.roi_heads
    if not hasattr(heads, f"{head}_pooler"):
        return tuple(heads.in_features), heads.pooler
    return tuple(getattr(heads, f"{head}_in_features")), getattr(heads, f"{head}_pooler")


def _to_tensor(picture: np.ndarray) -> Tensor:
    """A picture (H, W, 3), uint8, as a tensor (3, H, W), float32."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float()


def _instances(heads: StandardROIHeads, boxes: Tensor, size: Sequence[int]) -> Instances:
    """Targets of an image of that size (H, W): boxes (P, 4), with filled masks and keypoints where heads have such."""
    instances = Instances(tuple(size))
    instances.gt_boxes, instances.gt_classes = Boxes(boxes), torch.zeros(len(boxes), dtype=torch.long)
    if heads.mask_on:
        instances.gt_masks = PolygonMasks([[_corners(box)] for box in boxes])
    if heads.keypoint_on:
        middle = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
        points = torch.cat([middle, torch.full((len(boxes), 1, 1), 2.0)], 2)
        instances.gt_keypoints = Keypoints(points.repeat(1, heads.keypoint_head.num_keypoints, 1))
    return instances


def _corners(box: Tensor) -> np.ndarray:
    left, top, right, bottom = box.tolist()
    return np.array([left, top, right, top, right, bottom, left, bottom])

"""A dense network as a search sees it: its layers, its ResNet, the images it is tried on, what is timed.

Classifiers and detectors of both stacks differ here only; ``search`` does not tell them apart.

Its *outputs* are what a network is for: the logits of a classifier; the scores and deltas of a detector's RPN and what
its heads put out, on the regions that the dense detector proposes. A *frame* is what is timed: for a detector the
backbone, the proposals with their NMS, pooling and heads; without the last NMS, which depends on what a network finds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...models.description import has_stride_in_1x1, read_network
from ...models.factorize import Layout, find_candidates, find_layout
from ...models.fuse import fuse
from ...models.keys import split_detector_state
from ...models.rcnn import FeatureMaps, ImageBatch
from ...models.resnet import NortonResNet
from ...models.spec import CompressionSpec
from ...models.spec_from_state import spec_from_state
from ...models.stacks import DetectionStack, is_detector, stack_of
from ...models.state import load_state
from ...utils.errors import InputError
from ..calibration import Calibration
from ..detector import check_images, compress_detector
from ..prune import find_laterals
from ..resnet import compress
from ..sampling import crop_side, random_crops
from .costs import Network, describe_network
from .image_sensitivity import ImageProbe, groups_from_images
from .perturbation import Outputs
from .sensitivity import Group, groups_from_weights
from .settings import SearchSettings

REGIONS, FEW = 64, 8  # of a crop in the box head, and in the others, which take many more MACs a region
DETECTIONS = 100  # regions of mask and keypoint heads in a frame, as in ``complexity``
ALONE: dict[str, Any] = {"neck_rank": None, "head_rank": None, "box_head_rank": None}


@dataclass
class SearchProblem:
    """What a search needs of a dense network.

    Attributes:
        network: its layers and their costs.
        sensitivity: measures the errors of every value, with a progress bar or not.
        frame: makes the call that is timed, of the dense network, or of a quick version of a spec and a layout.
    """

    network: Network
    sensitivity: Callable[[SearchSettings, bool], list[Group]]
    frame: Callable[[CompressionSpec | None, Layout], Callable[[], object]] = field(repr=False)


def problem_of(model: Any, calibration: Any, input_size: tuple[int, int, int] | None) -> SearchProblem:
    """A detector's or a classifier's.

    Raises:
        InputError: neither, or not a dense one.
    """
    if isinstance(model, nn.Module) and is_detector(model):
        return _of_detector(model, calibration, input_size or (3, 800, 800))
    return _of_classifier(model, calibration, input_size or (3, 224, 224))


def whole_input(model: nn.Module, size: tuple[int, int, int]) -> Any:
    """Noise (3, H, W) as a whole call of a network takes it: a batch of one."""
    if is_detector(model):
        return [stack_of(model).noise_image(size)]
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(0))


def _of_classifier(
    model: nn.Module | Mapping[str, Tensor], calibration: Tensor | Calibration | None, size: tuple[int, int, int]
) -> SearchProblem:
    state, info = read_network(model)
    spec = info.spec
    if not spec.is_dense:
        raise InputError(f"model: expected a dense ResNet, got {spec}; search on the network that it came from")
    resnet = info.build_with(state, "model")
    network = describe_network(resnet, spec.arch, size, stride_in_1x1=info.stride_in_1x1)
    images = calibration.images if isinstance(calibration, Calibration) else calibration

    def sensitivity(settings: SearchSettings, progress: bool) -> list[Group]:
        if images is None:
            return groups_from_weights(network, state, settings, progress)
        few = images[: settings.probe_images].float()
        probe = ImageProbe(resnet, "", resnet, images[: settings.images].float(), lambda: [[resnet(few)]])
        return groups_from_images(network, probe, settings, progress)

    def frame(target: CompressionSpec | None, _: Layout) -> Callable[[], object]:
        quick = resnet if target is None else compress(resnet, target, criterion="norm", starts=1).model
        picture = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
        return partial(fuse(quick), picture)

    return SearchProblem(network, sensitivity, frame)


def _of_detector(detector: nn.Module, inputs: Sequence[Any] | None, size: tuple[int, int, int]) -> SearchProblem:
    stack = stack_of(detector)
    if find_layout(detector):
        raise InputError("detector: expected dense layers around the ResNet, got factored ones; use the dense detector")
    if inputs is not None:
        check_images(stack, inputs)
    dense = compress_detector(detector, None, **ALONE).model  # with our ResNet, whatever the stack's was
    prefix, resnet_state, rest = split_detector_state(dense.state_dict())
    spec = spec_from_state(resnet_state)
    if not spec.is_dense:
        raise InputError(f"detector: expected a dense ResNet, got {spec}; search on the detector that it came from")
    stride = has_stride_in_1x1(dense.get_submodule(f"{prefix}layer2.0.conv1"))
    stages = find_laterals(rest, spec.architecture)
    laterals = {name.removesuffix(".weight"): (stage, len(rest[name])) for name, stage in stages.items()}
    around = find_candidates(dense)
    network = describe_network(dense, spec.arch, size, stride_in_1x1=stride, around=around, laterals=laterals)

    def sensitivity(settings: SearchSettings, progress: bool) -> list[Group]:
        state = read_network(resnet_state)[0]
        if inputs is None:
            return groups_from_weights(network, state, settings, progress)
        resnet = NortonResNet(spec, 0, stride)
        load_state(resnet, state, "detector")
        large = _crops(dense, stack, inputs, settings.crop_side, settings.crops)
        small = _crops(dense, stack, inputs, settings.probe_side, settings.probe_crops)
        crops = torch.cat([crop.pixels for crop in large])
        runs = [partial(_outputs, dense, stack, [crop]) for crop in large]
        probe = ImageProbe(dense, prefix, resnet.eval(), crops, _outputs_of(dense, stack, small), runs)
        return groups_from_images(network, probe, settings, progress)

    regions: list[Tensor] = []

    def frame(target: CompressionSpec | None, layout: Layout) -> Callable[[], object]:
        quick = dense
        if target is not None:
            options: dict[str, Any] = {"criterion": "norm", "starts": 1, "input_size": size}
            quick = compress_detector(dense, target, **ALONE, layout=layout, **options).model
        return _frame(fuse(quick), dense, stack, size, regions)

    return SearchProblem(network, sensitivity, frame)


def _frame(
    fused: nn.Module, dense: nn.Module, stack: DetectionStack, size: tuple[int, int, int], regions: list[Tensor]
) -> Callable[[], object]:
    """A frame of a fused detector, on noise; ``regions`` keeps those of the dense one for all."""
    height, width = (-(-side // 32) * 32 for side in size[1:])
    pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(next(dense.parameters()).device)
    batch = ImageBatch.of(pixels)
    if not regions:
        with torch.inference_mode():
            regions.append(stack.propose(dense, batch, stack.feature_maps(dense, pixels)))

    def call() -> object:
        features = stack.feature_maps(fused, pixels)
        stack.propose(fused, batch, features)
        return [
            stack.head_outputs(fused, head, stack.pool(fused, head, batch, features, boxes))
            for head in stack.heads_of(fused)
            for boxes in [regions[0] if head == "box" else regions[0][:DETECTIONS]]
        ]

    return call


def _outputs_of(detector: nn.Module, stack: DetectionStack, crops: list[ImageBatch]) -> Outputs:
    """Gives the outputs on crops, with the regions that the detector as it is now proposes."""
    with torch.no_grad():
        regions = [_regions(detector, stack, crop, stack.feature_maps(detector, crop.pixels)) for crop in crops]
    return lambda: _outputs(detector, stack, crops, regions)


def _outputs(
    detector: nn.Module, stack: DetectionStack, crops: Sequence[ImageBatch], regions: Sequence[Tensor] | None = None
) -> list[list[Tensor]]:
    """What the RPN and each head put out, tensors of equal kind of all crops in one."""
    by_crop: list[list[list[Tensor]]] = []
    for index, crop in enumerate(crops):
        features = stack.feature_maps(detector, crop.pixels)
        boxes = regions[index] if regions is not None else _regions(detector, stack, crop, features)
        ends = [_flat(stack.rpn_outputs(detector, features))]
        if len(boxes):
            ends += [
                stack.head_outputs(detector, head, stack.pool(detector, head, crop, features, head_boxes))
                for head in stack.heads_of(detector)
                for head_boxes in [boxes if head == "box" else boxes[:FEW]]
            ]
        by_crop.append(ends)
    count = max(map(len, by_crop))
    whole = [ends for ends in by_crop if len(ends) == count]  # of crops with regions
    return [_flat(zip(*of_crops, strict=True)) for of_crops in zip(*whole, strict=True)]


def _regions(detector: nn.Module, stack: DetectionStack, crop: ImageBatch, features: FeatureMaps) -> Tensor:
    return stack.propose(detector, crop, features)[:REGIONS]


def _flat(groups: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """The tensors of each group as one of one dimension: those of all levels, or of all crops."""
    return [torch.cat([tensor.flatten() for tensor in tensors]) for tensors in groups]


def _crops(
    detector: nn.Module, stack: DetectionStack, inputs: Sequence[Any], side: int, count: int
) -> list[ImageBatch]:
    """Preprocessed crops of images, one of each as far as they last."""
    count = min(count, len(inputs))
    chosen = [inputs[index * len(inputs) // count] for index in range(count)]
    images = [stack.preprocess(detector, [image]).pixels for image in chosen]
    return [ImageBatch.of(crop) for crop in random_crops(images, crop_side(images, side))]

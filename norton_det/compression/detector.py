"""Compress a whole R-CNN: the ResNet with NORTON, and the layers around it by the same decompositions.

With the backbone alone a detector loses a third of its MACs and hardly any of its time. Here the output convolutions
of the FPN, the RPN's convolution and those of mask and keypoint heads become ``CPConv2d``, the linear layers of the
box head ``LowRankLinear`` (see ``factorize`` for names). Works on detectors of Detectron2 and torchvision, trained or
not, whose ResNet is dense or compressed already.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..models.complexity import count_complexity
from ..models.description import NetworkInfo, detector_stride_in_1x1
from ..models.factorize import Candidate, Layout, apply_layout, factored_layer, find_candidates, find_layout
from ..models.keys import split_detector_state
from ..models.spec import CompressionSpec
from ..models.spec_from_state import spec_from_state
from ..models.stacks import DetectionStack, stack_of
from ..models.state import check_finite, match_counters
from ..utils.errors import InputError
from ..utils.threads import one_thread
from .calibration import Calibration
from .detector_report import DetectorReport, FactoredLayer
from .fit_detector import fit_around
from .report import CompressionReport
from .resnet import compress_detector_state_with
from .sampling import crop_side, random_crops
from .settings import CompressionOptions, CompressionSettings

CROP = 512  # pixels: side of the crops that the ResNet is fitted on
CALIBRATION_PIXELS = 512 * 128 * 128  # of all crops together; see the cost in ``fit_resnet``


@dataclass(frozen=True)
class DetectorResult:
    """The new detector (``model``, in eval mode) and the ``report``."""

    model: nn.Module
    report: DetectorReport


@one_thread()
def compress_detector(
    detector: nn.Module,
    spec: CompressionSpec | str | None = None,
    *,
    neck_rank: int | None = 1,
    head_rank: int | None = 1,
    box_head_rank: int | None = 128,
    layout: Mapping[str, int | None] | None = None,
    calibration: Sequence[Any] | None = None,
    input_size: tuple[int, int, int] = (3, 800, 800),
    **options: Unpack[CompressionOptions],
) -> DetectorResult:
    """Compress a Faster, Mask or Keypoint R-CNN with FPN; the input is untouched.

    The same input gives the same bits on any number of threads.

    Args:
        detector: of Detectron2 or torchvision; its ResNet is dense or compressed.
        spec: ranks and ratios of the ResNet, or a preset's name; ``None`` leaves it as it is.
        neck_rank: CP rank of the FPN's output convolutions and of the RPN's; ``None`` leaves them dense.
        head_rank: CP rank of the convolutions of mask and keypoint heads (and of a box head's, if it has some).
        box_head_rank: of the box head's linear layers.
        layout: ranks of single layers by name, which come first; ``None`` as a rank leaves that one dense.
        calibration: unlabelled images, each as the detector takes it (Detectron2: a dict with "image"; torchvision:
            (3, H, W) in 0..1). All that is compressed is then fitted to the dense detector on them.
        input_size: (3, H, W) at which MACs are counted.
        options: of ``compress``, for the ResNet.

    Raises:
        InputError: not such a detector, weights that are not finite, a ResNet that is compressed already with another
            spec, or a rank out of range.
    """
    started = time.perf_counter()
    stack = stack_of(detector)
    if isinstance(spec, str):
        spec = CompressionSpec.preset(spec, resnet_spec(detector).arch)
    for name, parameter in detector.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(f"{name}: expected float32, got {parameter.dtype}; call float() on the detector first")
    check_finite(detector.state_dict(), "detector")
    candidates = find_candidates(detector)
    chosen, left = choose_layout(candidates, neck_rank, head_rank, box_head_rank, layout or {})
    on_crops = None
    if calibration is not None:
        check_images(stack, calibration)
        dense = copy.deepcopy(detector).eval()
        crops = _crops(dense, stack, calibration)
        on_crops = Calibration(crops, device=str(crops.device))
    model, info, backbone = _compress_resnet(
        detector, stack, spec, CompressionSettings(calibration=on_crops, **options)
    )
    old = {candidate.name: candidate for candidate in candidates}
    apply_layout(model, chosen).eval()
    errors = {}
    if calibration is not None:
        errors = fit_around(dense, model, chosen, calibration, stack, progress=options.get("progress", False))
    layers = tuple(_describe(old[name], model.get_submodule(name), errors.get(name)) for name in chosen)
    stack.attach_info(model, replace(info, layout=find_layout(model)))
    before, after = count_complexity(detector, input_size), count_complexity(model, input_size)
    report = DetectorReport(
        backbone,
        layers,
        left,
        (before.macs, after.macs),
        (before.params, after.params),
        input_size,
        time.perf_counter() - started,
    )
    return DetectorResult(model.eval(), report)


def resnet_spec(detector: nn.Module) -> CompressionSpec:
    """The spec of a detector's ResNet as it is.

    Raises:
        InputError: it has none.
    """
    return spec_from_state(split_detector_state(detector.state_dict())[1])


def choose_layout(
    candidates: list[Candidate],
    neck_rank: int | None,
    head_rank: int | None,
    box_head_rank: int | None,
    single: Mapping[str, int | None],
) -> tuple[Layout, dict[str, str]]:
    """Ranks by layer name, and the layers that stay dense with the reason.

    A rank of a whole part leaves those layers dense that it would not make smaller; a single layer's is an order.

    Raises:
        InputError: an unknown layer, one that cannot be factored, or a rank out of range.
    """
    names = {candidate.name for candidate in candidates}
    if unknown := [name for name in single if name not in names]:
        raise InputError(f"layout: {unknown[0]}: no such layer; there are {', '.join(sorted(names)) or 'none'}")
    for name, rank in single.items():
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
            raise InputError(f"layout: {name}: expected a rank or None for dense, got {rank!r}; give a whole number")
    for option, rank in (("neck_rank", neck_rank), ("head_rank", head_rank), ("box_head_rank", box_head_rank)):
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise InputError(f"{option}: expected 1 or more, or None for dense, got {rank!r}; choose one of them")
    layout: Layout = {}
    dense: dict[str, str] = {}
    for candidate in candidates:
        by_part = box_head_rank if isinstance(candidate.module, nn.Linear) else head_rank
        rank = single.get(candidate.name, neck_rank if candidate.part in ("neck", "rpn") else by_part)
        if (
            rank is not None
            and candidate.name in single
            and (candidate.reason or not 1 <= rank <= candidate.largest_rank)
        ):
            reason = candidate.reason or f"expected rank 1 to {candidate.largest_rank}, got {rank}"
            raise InputError(f"layout: {candidate.name}: {reason}; leave it dense")
        if candidate.reason:
            dense[candidate.name] = candidate.reason
        elif rank is None:
            dense[candidate.name] = "as asked"
        elif rank > candidate.largest_rank:
            dense[candidate.name] = f"rank {rank} would not make it smaller"
        else:
            layout[candidate.name] = rank
    return layout, dense


def _compress_resnet(
    detector: nn.Module, stack: DetectionStack, spec: CompressionSpec | None, settings: CompressionSettings
) -> tuple[nn.Module, NetworkInfo, CompressionReport | None]:
    """A copy of the detector with its ResNet compressed to ``spec``, what it is then, and the report."""
    state = detector.state_dict()
    prefix, resnet_state, rest = split_detector_state(state)
    if not prefix:
        raise InputError("detector: expected a ResNet below backbone, got none; use an R-CNN with FPN")
    current = spec_from_state(resnet_state)
    if spec is not None and not current.is_dense and not spec.same_network(current):
        raise InputError(f"detector: expected a dense ResNet, got {current}; leave spec out, or use the dense detector")
    stays = spec is None or spec.same_network(current)
    target = current if spec is None or stays else spec
    info = NetworkInfo(target, stack.preprocessing_of(detector), 0, detector_stride_in_1x1(detector))
    model, report = copy.deepcopy(detector), None
    if stays and stack.has_norton_resnet(detector):
        return model, info, None
    if stays:
        new: Mapping[str, Tensor] = {f"{prefix}{name}": tensor for name, tensor in resnet_state.items()} | rest
    else:
        stride = info.stride_in_1x1 if settings.stride_in_1x1 is None else settings.stride_in_1x1
        preprocessing = settings.preprocessing or info.preprocessing
        expected = replace(settings, preprocessing=preprocessing, stride_in_1x1=stride)
        new, report = compress_detector_state_with(state, target, expected)
    stack.replace_resnet(model, info)
    _load(model, new)
    return model, info, report


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a whole state; convolutions that read fewer channels now are narrowed."""
    expected = model.state_dict()
    for name, tensor in state.items():
        if name in expected and expected[name].shape != tensor.shape and tensor.ndim == 4:
            conv = model.get_submodule(name.rpartition(".")[0])
            weight = torch.empty_like(tensor, device=expected[name].device)
            conv.weight = nn.Parameter(weight, bool(conv.weight.requires_grad))
            conv.in_channels = tensor.shape[1]  # type: ignore[assignment]
    model.load_state_dict(match_counters(state, expected))


def check_images(stack: DetectionStack, images: Sequence[Any]) -> None:
    """Refuse calibration images that the detector would not take.

    Raises:
        InputError: none, or not a sequence of what this stack takes.
    """
    if not isinstance(images, list | tuple):
        raise InputError(f"calibration: expected a list of images, got {type(images).__name__}; make a list of them")
    if not images:
        raise InputError("calibration: expected images, got none; give some")
    for index, image in enumerate(images):
        if problem := stack.check_image(image):
            raise InputError(f"calibration: image {index}: expected {problem}; give images as the detector takes them")


def _crops(detector: nn.Module, stack: DetectionStack, inputs: Sequence[Any]) -> Tensor:
    """Random crops (N, 3, S, S) of the preprocessed images, to fit the ResNet on: as many pixels as memory allows."""
    images = [stack.preprocess(detector, [image]).pixels for image in inputs]
    side = crop_side(images, CROP)
    per_image = max(1, min(4, CALIBRATION_PIXELS // (side * side * len(images))))
    return torch.cat(random_crops(images, side, per_image))


def _describe(old: Candidate, new: nn.Module, output_error: float | None) -> FactoredLayer:
    layer = factored_layer(new)
    weight = old.module.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach().double()
    error = (weight - layer.to_weight().double()).square().sum() / weight.square().sum().clamp_min(1e-300)
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (old.module, layer)]
    params = (counts[0], counts[1])
    return FactoredLayer(old.name, old.part, type(layer).__name__, layer.rank, float(error), params, output_error)

"""NORTON: decompose every 3x3 filter, prune in the decomposed space, and build the smaller network.

Two steps on one representation (NORTON, sections III-A and III-B):

1. each filter of the 3x3 convolutions gets its own CP decomposition (``cp``);
2. filters are scored (``criteria``) and the lowest are cut together with all that belongs to them: their batch
   normalisation and the matching input channels of every layer that reads them (``prune``).

With calibration images a third step follows: what is left is fitted to the dense network's outputs (``calibration``).
Surgery is on state dicts and gives new tensors; the input is never changed.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..decomposition.cp import Factors, cp_decompose_layers
from ..models.architecture import Architecture
from ..models.complexity import count_complexity
from ..models.description import read_network
from ..models.keys import split_detector_state
from ..models.preprocessing import Preprocessing
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..models.state import check_finite, check_state, match_counters
from ..utils.errors import InputError
from ..utils.threads import one_thread
from .calibration import Calibration
from .channel_statistics import channel_statistics
from .criteria import DataCriterion, get_criterion
from .fit_resnet import FittedReader, Reader, calibrate
from .prune import cut, cut_laterals, find_laterals, select_channels
from .report import CompressionReport, layer_reports
from .settings import CompressionOptions, CompressionSettings, as_calibration


@dataclass(frozen=True)
class CompressionResult:
    """The new ``model`` (eval mode), the ``report``, and ``readers`` that were fitted, by stage."""

    model: NortonResNet
    report: CompressionReport
    readers: dict[int, FittedReader]


def compress(
    model: nn.Module | Mapping[str, Tensor],
    spec: CompressionSpec | str,
    *,
    calibration: Tensor | Calibration | None = None,
    readers: Mapping[int, Reader] | None = None,
    input_size: tuple[int, int, int] = (3, 224, 224),
    **options: Unpack[CompressionOptions],
) -> CompressionResult:
    """Compress a dense ResNet with NORTON; the same input gives the same bits on any number of threads.

    Args:
        model: torchvision's ResNet-18/34/50/101/152, a dense ``NortonResNet``, or a state dict with their names, any
            number of classes, with or without the classifier. It is left untouched.
        spec: ranks and ratios, or the name of a preset, such as ``norton-78``.
        calibration: unlabelled images (N, 3, H, W), preprocessed as the weights expect, or a ``Calibration`` with
            settings: the compressed network is fitted to the dense one on them.
        readers: what else reads the outputs of stages (1..4), to be fitted too.
        input_size: (3, H, W) at which MACs are counted.
        criterion: how filters are scored, one of ``criteria()``; by default ``css`` with calibration, else ``pabs``.
        seed: of the random starts of the decomposition and of random criteria.
        starts: initial guesses per filter of the decomposition; by default more for higher ranks.
        preprocessing, stride_in_1x1: what the weights expect; by default as the model says, else torchvision's.
        progress: show progress bars.

    Raises:
        InputError: not such a network, already compressed, not finite, an unknown criterion, or one that needs
            calibration images without them.
    """
    settings = CompressionSettings(calibration=as_calibration(calibration), input_size=input_size, **options)
    return compress_with(model, spec, settings, readers)


@one_thread()
def compress_with(
    model: nn.Module | Mapping[str, Tensor],
    spec: CompressionSpec | str,
    settings: CompressionSettings,
    readers: Mapping[int, Reader] | None = None,
) -> CompressionResult:
    """``compress`` with its keyword arguments as settings."""
    calibration, input_size, progress = settings.calibration, settings.input_size, settings.progress
    criterion = settings.scored_by
    state, info = read_network(model)
    stride_in_1x1 = info.stride_in_1x1 if settings.stride_in_1x1 is None else settings.stride_in_1x1
    preprocessing = settings.preprocessing or info.preprocessing
    if calibration is not None:
        _check_range(calibration.images, preprocessing)
    spec = spec_for(info.spec.arch, spec)
    with torch.device("meta"):
        dense = NortonResNet(CompressionSpec.dense(spec.arch), info.num_classes, stride_in_1x1)
        small = NortonResNet(spec, info.num_classes, stride_in_1x1)
    state = match_counters(state, dense.state_dict())
    check_state(state, dense.state_dict(), "model")
    seconds: dict[str, float] = {}
    with _timed(seconds, "decompose"):
        factors = _decompose(state, spec, settings)
    teacher, statistics = None, None
    if calibration is not None:
        teacher = copy.deepcopy(dense).to_empty(device=calibration.device).eval()
        teacher.load_state_dict(state)
        if isinstance(get_criterion(criterion), DataCriterion):
            with _timed(seconds, "channels"):
                statistics = channel_statistics(teacher, spec, calibration, progress)
    with _timed(seconds, "prune"):
        kept = select_channels(state, factors, spec, criterion, settings.seed, progress, statistics)
        pruned = cut(state, factors, kept, spec)
    small = small.to_empty(device="cpu")
    small.preprocessing = preprocessing
    small.load_state_dict(pruned)
    small.eval()
    errors: dict[str, float] = {}
    fitted: dict[int, FittedReader] = {}
    if calibration is not None and teacher is not None and calibration.batch_norm:
        with _timed(seconds, "calibrate"):
            small.to(calibration.device)
            errors, fitted = calibrate(teacher, small, kept, calibration, readers, progress)
            small.to("cpu")
    before, after = count_complexity(dense, input_size), count_complexity(small, input_size)
    report = CompressionReport(
        spec=spec,
        criterion=criterion,
        layers=tuple(layer_reports(state, factors, small)),
        kept={name: tuple(index.tolist()) for name, index in kept.items()},
        macs=(before.macs, after.macs),
        params=(before.params, after.params),
        input_size=input_size,
        seconds=seconds,
        errors=errors,
    )
    return CompressionResult(small, report, fitted)


def compress_detector_state(
    state: Mapping[str, Tensor],
    spec: CompressionSpec,
    *,
    calibration: Tensor | Calibration | None = None,
    input_size: tuple[int, int, int] = (3, 224, 224),
    **options: Unpack[CompressionOptions],
) -> tuple[dict[str, Tensor], CompressionReport]:
    """Compress the ResNet inside a trained detector; neck and heads stay as they are.

    Args:
        state: of a Detectron2 or torchvision R-CNN with FPN and a dense ResNet.
        spec: ranks and ratios.
        calibration, input_size, options: of ``compress``.

    Returns:
        The new state (the ResNet with torchvision's names below the same prefix, the FPN's lateral convolutions cut
        to the channels kept) and the report on the ResNet.

    Raises:
        InputError: no such ResNet in it, already compressed, or not finite.
    """
    settings = CompressionSettings(calibration=as_calibration(calibration), input_size=input_size, **options)
    return compress_detector_state_with(state, spec, settings)


def compress_detector_state_with(
    state: Mapping[str, Tensor], spec: CompressionSpec, settings: CompressionSettings
) -> tuple[dict[str, Tensor], CompressionReport]:
    """``compress_detector_state`` with its keyword arguments as settings."""
    prefix, resnet, rest = split_detector_state(state)
    check_finite(rest, "detector")
    readers = _readers(rest, spec.architecture)
    result = compress_with(resnet, spec, settings, {stage: reader for stage, (_, reader) in readers.items()})
    small = {f"{prefix}{name}": tensor for name, tensor in result.model.state_dict().items()}
    kept = {name: torch.tensor(index) for name, index in result.report.kept.items()}
    around = cut_laterals(rest, kept, spec.architecture)
    for stage, (weight, shift) in result.readers.items():
        name = readers[stage][0]
        around[name] = weight[:, :, None, None].to(rest[name].dtype)
        bias = f"{name.removesuffix('weight')}bias"
        if bias in rest:
            around[bias] = rest[bias].cpu() + shift.to(rest[bias].dtype)
    return small | around, result.report


def _readers(rest: Mapping[str, Tensor], arch: Architecture) -> dict[int, tuple[str, Reader]]:
    """The FPN's lateral convolutions: name of the weight, and what is to be fitted, by the stage that each reads."""
    return {
        stage: (name, Reader(rest[name].flatten(1), f"{name.removesuffix('weight')}bias" in rest))
        for name, stage in find_laterals(rest, arch).items()
    }


def spec_for(arch: str, spec: CompressionSpec | str) -> CompressionSpec:
    """A spec as given, or the preset of that name for a ResNet of that name.

    Raises:
        InputError: neither, or a spec of another ResNet.
    """
    if not isinstance(spec, CompressionSpec | str):
        raise InputError(f"spec: expected a CompressionSpec or a preset's name, got {spec!r:.40}; write norton-78")
    if isinstance(spec, str):
        return CompressionSpec.preset(spec, arch)
    if spec.arch != arch:
        raise InputError(f"spec: expected one of {arch}, as the model is, got one of {spec.arch}; give arch='{arch}'")
    return spec


def _check_range(images: Tensor, preprocessing: Preprocessing) -> None:
    """Refuse images that were not preprocessed: values far outside those that pixels of 0 to 255 become."""
    mean, std = (torch.tensor(values) for values in (preprocessing.mean, preprocessing.std))
    low, high = float((-mean / std).min()), float(((255 - mean) / std).max())
    slack = 5 * (high - low)  # far outside: pixels of 0 to 255 that were not normalised
    extent = float(images.min()), float(images.max())
    if extent[0] < low - slack or extent[1] > high + slack:
        raise InputError(
            f"calibration: images: expected values of {low:.1f} to {high:.1f} ({preprocessing}), got "
            f"{extent[0]:.1f} to {extent[1]:.1f}; preprocess them as the weights expect"
        )


def _decompose(state: Mapping[str, Tensor], spec: CompressionSpec, settings: CompressionSettings) -> dict[str, Factors]:
    """CP factors of every 3x3 convolution that has a rank, by layer name."""
    ranks = {name: rank for name, rank in zip(spec.architecture.factored, spec.ranks, strict=True) if rank is not None}
    weights = [state[f"{name}.weight"] for name in ranks]
    total = sum(len(weight) for weight in weights)
    with tqdm(total=total, desc="decompose", unit="filter", disable=not settings.progress) as bar:
        factors = cp_decompose_layers(
            weights,
            list(ranks.values()),
            starts=settings.starts,
            seed=settings.seed,
            names=list(ranks),
            progress=bar.update,
        )
    return dict(zip(ranks, factors, strict=True))


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - started

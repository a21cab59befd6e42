"""NORTON: decompose every 3x3 filter, prune in the decomposed space, and build the smaller network.

Two steps on one representation (NORTON, sections III-A and III-B):

1. each filter of the 3x3 convolutions gets its own CP decomposition (``cp``);
2. filters are scored (``saliency``) and the lowest are cut together with all that belongs to them: their batch
   normalisation and the matching input channels of every layer that reads them.

*Coupled channels.* All layers that write one residual stream (the projection and conv3 of every block of a
stage) share one index set, from the sum of their scores. So the pruned network computes exactly what the
decomposed one computes with the dropped channels set to zero.

Surgery is on state dicts and gives new tensors; the input is never changed.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoint import check_state
from .complexity import count_complexity
from .cp import Factors, cp_decompose_layers, nmse
from .errors import InputError
from .keys import split_detector_state
from .layers import factors_to_state
from .preprocessing import TORCHVISION, Preprocessing
from .resnet import NortonResNet
from .saliency import get_criterion, keep_indices
from .spec import STAGE_WIDTHS, CompressionSpec

NORM_FIELDS = ("weight", "bias", "running_mean", "running_var")
# input projection of a neck for the output of a stage: Detectron2's FPN, torchvision's (with .0 since 0.13)
LATERAL = re.compile(r"(?:.*\.)?backbone\.(?:fpn_lateral\d+|fpn\.inner_blocks\.\d+(?:\.0)?)\.weight")


@dataclass(frozen=True)
class LayerReport:
    """One decomposed or pruned convolution.

    Attributes:
        name: torchvision's name of the layer.
        rank: CP rank, ``None`` where it stays dense.
        nmse: relative squared error of the decomposition, before pruning.
        filters, kept: outputs before and after pruning.
    """

    name: str
    rank: int | None
    nmse: float
    filters: int
    kept: int


@dataclass(frozen=True)
class CompressionReport:
    """What ``compress`` did.

    Attributes:
        spec, criterion: as given.
        layers: every convolution in the order of the network.
        kept: sorted indices of the channels left, by the layer or residual stream that writes them
            (``conv1``, ``layer1``, ``layer1.0.conv1``, ``layer1.0.conv2``, ...).
        macs, params: (before, after); conv + linear multiply-adds at ``input_size``.
        input_size: (3, H, W).
        seconds: by step.
    """

    spec: CompressionSpec
    criterion: str
    layers: tuple[LayerReport, ...]
    kept: dict[str, tuple[int, ...]]
    macs: tuple[int, int]
    params: tuple[int, int]
    input_size: tuple[int, int, int]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        return fields | {"spec": self.spec.to_dict(), "kept": {name: list(index) for name, index in self.kept.items()}}

    def table(self) -> str:
        """One line per convolution, then the totals."""
        lines = [f"{'layer':22} {'rank':>5} {'NMSE':>7} {'filters':>8} {'kept':>6}"]
        for layer in self.layers:
            rank, error = ("-", "-") if layer.rank is None else (str(layer.rank), f"{layer.nmse:.4f}")
            lines.append(f"{layer.name:22} {rank:>5} {error:>7} {layer.filters:8d} {layer.kept:6d}")
        lines.append(self.summary())
        return "\n".join(lines)

    def summary(self) -> str:
        """Two lines: MACs and parameters before and after, seconds."""
        size = "x".join(map(str, self.input_size))
        steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return (
            f"{self.spec.name or self.spec.arch}: MACs {self.macs[0] / 1e9:.2f} -> {self.macs[1] / 1e9:.2f} G "
            f"(-{100 * (1 - self.macs[1] / self.macs[0]):.1f} %, conv + linear, {size}), "
            f"params {self.params[0] / 1e6:.2f} -> {self.params[1] / 1e6:.2f} M "
            f"(-{100 * (1 - self.params[1] / self.params[0]):.1f} %)\ncriterion {self.criterion}; {steps}"
        )


@dataclass(frozen=True)
class CompressionResult:
    """The new ``model`` (eval mode) and the ``report``."""

    model: NortonResNet
    report: CompressionReport


@contextmanager
def _one_thread() -> Iterator[None]:
    """All matrices here are small: more threads save little, and waiting for each other on a busy machine they can
    take a hundred times longer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def compress(
    model: nn.Module | Mapping[str, Tensor],
    spec: CompressionSpec,
    *,
    criterion: str = "pabs",
    seed: int = 0,
    starts: int | None = None,
    preprocessing: Preprocessing | None = None,
    stride_in_1x1: bool | None = None,
    input_size: tuple[int, int, int] = (3, 224, 224),
    progress: bool = False,
) -> CompressionResult:
    """Compress a dense bottleneck ResNet with NORTON.

    Args:
        model: torchvision's ResNet-50/101/152, a dense ``NortonResNet``, or a state dict with torchvision's names,
            any number of classes, with or without the classifier. It is left untouched.
        spec: ranks and ratios.
        criterion: how filters are scored, one of ``criteria()``.
        seed: of the random starts of the decomposition and of random criteria.
        starts: initial guesses per filter of the decomposition; by default more for higher ranks.
        preprocessing, stride_in_1x1: what the weights expect; by default as the model says, else torchvision's.
        input_size: (3, H, W) at which MACs are counted.
        progress: show progress bars.

    Raises:
        InputError: not such a network, already compressed, not finite, or an unknown criterion.
    """
    get_criterion(criterion)
    state, found_preprocessing, found_stride = _read_model(model)
    classes = state["fc.weight"].shape[0] if "fc.weight" in state else 0
    stride_in_1x1 = found_stride if stride_in_1x1 is None else stride_in_1x1
    with torch.device("meta"):
        dense = NortonResNet(CompressionSpec.dense(spec.arch), classes, stride_in_1x1)
        small = NortonResNet(spec, classes, stride_in_1x1)
    check_state(state, dense.state_dict(), "model")
    seconds: dict[str, float] = {}
    with _timed(seconds, "decompose"):
        factors = _decompose(state, spec, seed, starts, progress)
    with _timed(seconds, "prune"):
        kept = select_channels(state, factors, spec, criterion, seed, progress)
        pruned = cut(state, factors, kept, spec)
    small = small.to_empty(device="cpu")
    small.preprocessing = preprocessing or found_preprocessing
    small.load_state_dict(pruned)
    before, after = count_complexity(dense, input_size), count_complexity(small, input_size)
    report = CompressionReport(
        spec=spec,
        criterion=criterion,
        layers=tuple(_layer_reports(state, factors, small)),
        kept={name: tuple(index.tolist()) for name, index in kept.items()},
        macs=(before.macs, after.macs),
        params=(before.params, after.params),
        input_size=input_size,
        seconds=seconds,
    )
    return CompressionResult(small.eval(), report)


def select_channels(
    state: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
    spec: CompressionSpec,
    criterion: str = "pabs",
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Sorted indices of the channels to keep, by the layer or residual stream that writes them.

    Streams are named after their stage (``layer1``), other channels after the convolution. A convolution
    without CP factors is scored by ``norm`` where the criterion needs factors (NORTON prunes 1x1 so).
    """
    widths, generator = spec.widths(), torch.Generator().manual_seed(seed)

    def scores(name: str, part: Factors | None = None) -> Tensor:
        chosen = get_criterion(criterion)
        if chosen.needs_factors and part is None:
            chosen = get_criterion("norm")
        return chosen.score(state[f"{name}.weight"], part, generator)

    kept = {"conv1": keep_indices(scores("conv1"), widths.stem)}
    bar = tqdm(list(_blocks(spec)), desc="prune", unit="block", disable=not progress)
    for stage, block in bar:
        name = f"layer{stage}.{block}"
        if block == 0:
            writers = [f"layer{stage}.0.downsample.0"] + [
                f"layer{stage}.{b}.conv3" for b in range(spec.depths[stage - 1])
            ]
            shared = sum((_relative(scores(writer)) for writer in writers), torch.zeros(1, dtype=torch.double))
            kept[f"layer{stage}"] = keep_indices(shared, widths.stages[stage - 1])
        width = widths.blocks[stage - 1][block]
        inner = keep_indices(scores(f"{name}.conv1"), width)
        part = factors.get(f"{name}.conv2")
        # as the filters are left by the cut of their input channels
        middle = scores(f"{name}.conv2", None if part is None else part.inputs(inner))
        kept[f"{name}.conv1"], kept[f"{name}.conv2"] = inner, keep_indices(middle, width)
    return kept


def cut(
    state: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
    kept: Mapping[str, Tensor],
    spec: CompressionSpec,
) -> dict[str, Tensor]:
    """The state dict of ``NortonResNet(spec)``: the channels of ``kept``, 3x3 weights replaced by their factors."""
    out: dict[str, Tensor] = {}

    def norm(name: str, index: Tensor) -> None:
        out.update({f"{name}.{field}": state[f"{name}.{field}"][index] for field in NORM_FIELDS})
        out[f"{name}.num_batches_tracked"] = state[f"{name}.num_batches_tracked"]

    def conv(name: str, outputs: Tensor, inputs: Tensor) -> None:
        out[f"{name}.weight"] = state[f"{name}.weight"][outputs][:, inputs]

    conv("conv1", kept["conv1"], torch.arange(3))
    norm("bn1", kept["conv1"])
    stream = kept["conv1"]
    for stage, block in _blocks(spec):
        name, outputs = f"layer{stage}.{block}", kept[f"layer{stage}"]
        inner, middle = kept[f"{name}.conv1"], kept[f"{name}.conv2"]
        if block == 0:
            conv(f"{name}.downsample.0", outputs, stream)
            norm(f"{name}.downsample.1", outputs)
        conv(f"{name}.conv1", inner, stream)
        norm(f"{name}.bn1", inner)
        if f"{name}.conv2" in factors:
            part = factors_to_state(factors[f"{name}.conv2"].inputs(inner).filters(middle))
            out.update({f"{name}.conv2.{key}": tensor for key, tensor in part.items()})
        else:
            conv(f"{name}.conv2", middle, inner)
        norm(f"{name}.bn2", middle)
        conv(f"{name}.conv3", outputs, middle)
        norm(f"{name}.bn3", outputs)
        stream = outputs
    out.update({name: state[name] for name in ("fc.weight", "fc.bias") if name in state})
    return out


def compress_detector_state(
    state: Mapping[str, Tensor], spec: CompressionSpec, **options: Any
) -> tuple[dict[str, Tensor], CompressionReport]:
    """Compress the ResNet inside a trained detector; neck and heads stay as they are.

    Args:
        state: of a Detectron2 or torchvision R-CNN with FPN and a dense bottleneck ResNet.
        spec: ranks and ratios.
        options: of ``compress``.

    Returns:
        The new state (the ResNet with torchvision's names below the same prefix, the FPN's lateral convolutions cut
        to the channels kept) and the report on the ResNet.

    Raises:
        InputError: no such ResNet in it, or already compressed.
    """
    prefix, resnet, rest = split_detector_state(state)
    result = compress(resnet, spec, **options)
    small = {f"{prefix}{name}": tensor for name, tensor in result.model.state_dict().items()}
    return small | cut_laterals(rest, result.report.kept), result.report


def cut_laterals(rest: Mapping[str, Tensor], kept: Mapping[str, Tensor | tuple[int, ...]]) -> dict[str, Tensor]:
    """What of a detector lies outside the ResNet, with the FPN's lateral convolutions cut to the channels kept.

    Args:
        rest: tensors of a Detectron2 or torchvision detector by name, without those of the ResNet.
        kept: of the report; ``layer1`` to ``layer4`` are used.
    """
    out = dict(rest)
    for name, tensor in rest.items():
        if LATERAL.fullmatch(name):
            if tensor.ndim != 4 or tensor.shape[1] not in STAGE_WIDTHS:
                raise InputError(
                    f"{name}: expected (channels, {' or '.join(map(str, STAGE_WIDTHS))}, 1, 1), got "
                    f"{tuple(tensor.shape)}; use a detector with a dense ResNet"
                )
            stage = STAGE_WIDTHS.index(tensor.shape[1]) + 1  # a neck may leave stages out
            out[name] = tensor[:, torch.as_tensor(kept[f"layer{stage}"])]
    return out


def _read_model(model: nn.Module | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Preprocessing, bool]:
    """State dict in float32 on the CPU, preprocessing, and whether strides sit in the 1x1 convolutions."""
    if isinstance(model, nn.Module):
        state: Mapping[str, Tensor] = model.state_dict()
        preprocessing = getattr(model, "preprocessing", TORCHVISION)
        first = dict(model.named_modules()).get("layer2.0.conv1")
        stride = isinstance(first, nn.Conv2d) and first.stride != (1, 1)
    elif isinstance(model, Mapping):
        state, preprocessing, stride = model, TORCHVISION, False
    else:
        raise InputError(f"model: expected a ResNet or its state dict, got {type(model).__name__}; pass nn.Module")
    if any(name.endswith("conv2.pointwise.weight") for name in state):
        raise InputError("model: expected dense weights, got CP factors; compress the dense network it came from")
    clean: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"model: {name}: expected a tensor, got {type(tensor).__name__}; pass model.state_dict()")
        clean[name] = tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()
        if tensor.is_floating_point() and not torch.isfinite(clean[name]).all():
            raise InputError(f"model: {name}: expected finite weights, got NaN or infinity; use an intact checkpoint")
    for name in list(clean):
        if name.endswith("running_mean"):  # absent in frozen batch normalisation
            clean.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.zeros((), dtype=torch.long))
    return clean, preprocessing, stride


def _decompose(
    state: Mapping[str, Tensor], spec: CompressionSpec, seed: int, starts: int | None, progress: bool
) -> dict[str, Factors]:
    """CP factors of every 3x3 convolution that has a rank, by layer name."""
    ranks = {
        f"layer{stage}.{block}.conv2": rank
        for (stage, block), rank in zip(_blocks(spec), spec.ranks, strict=True)
        if rank is not None
    }
    weights = [state[f"{name}.weight"] for name in ranks]
    total = sum(len(weight) for weight in weights)
    with tqdm(total=total, desc="decompose", unit="filter", disable=not progress) as bar:
        found = cp_decompose_layers(
            weights, list(ranks.values()), starts=starts, seed=seed, names=list(ranks), progress=bar.update
        )
    return dict(zip(ranks, found, strict=True))


def _blocks(spec: CompressionSpec) -> Iterator[tuple[int, int]]:
    """(stage 1..4, block 0..) of every bottleneck, in order."""
    return ((stage, block) for stage, depth in enumerate(spec.depths, 1) for block in range(depth))


def _relative(scores: Tensor) -> Tensor:
    """Scores on the scale of their mean, so that coupled layers count alike."""
    mean = scores.abs().mean()
    return scores / mean if mean > 0 else scores


def _layer_reports(
    state: Mapping[str, Tensor], factors: Mapping[str, Factors], small: NortonResNet
) -> Iterator[LayerReport]:
    for name, module in small.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None or weight.ndim != 4:
            continue
        part = factors.get(name)
        error = nmse(weight, part) if part is not None else 0.0
        kept = module.out_channels
        assert isinstance(kept, int)
        yield LayerReport(name, part.rank if part is not None else None, error, len(weight), kept)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - started

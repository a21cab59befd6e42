"""Which channels stay, and the smaller state dict: surgery on tensors by torchvision's names.

*Coupled channels.* All layers that write one residual stream (the projection and conv3 of every block of a
stage) share one index set, from the sum of their scores. So the pruned network computes exactly what the
decomposed one computes with the dropped channels set to zero.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from .channels import ChannelStatistics
from .cp import Factors
from .errors import InputError
from .layers import factors_to_state
from .saliency import get_criterion, keep_indices
from .spec import STAGE_WIDTHS, CompressionSpec
from .threads import on_threads

NORM_FIELDS = ("weight", "bias", "running_mean", "running_var")
# input projection of a neck for the output of a stage: Detectron2's FPN, torchvision's (with .0 since 0.13)
LATERAL = re.compile(r"(?:.*\.)?backbone\.(?:fpn_lateral\d+|fpn\.inner_blocks\.\d+(?:\.0)?)\.weight")


def select_channels(
    state: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
    spec: CompressionSpec,
    criterion: str = "pabs",
    seed: int = 0,
    progress: bool = False,
    statistics: Mapping[str, ChannelStatistics] | None = None,
) -> dict[str, Tensor]:
    """Sorted indices of the channels to keep, by the layer or residual stream that writes them.

    Streams are named after their stage (``layer1``), other channels after the convolution. A convolution
    without CP factors is scored by ``norm`` where the criterion needs factors (NORTON prunes 1x1 so). Criteria that
    need data get ``statistics``, which have all groups that are pruned.
    """
    if get_criterion(criterion).needs_data:
        return _by_statistics(statistics or {}, spec, criterion, progress)
    widths, generator = spec.widths(), torch.Generator().manual_seed(seed)

    def scores(name: str, part: Factors | None = None) -> Tensor:
        chosen = get_criterion(criterion)
        if chosen.needs_factors and part is None:
            chosen = get_criterion("norm")
        return chosen.score(state[f"{name}.weight"], part, generator)

    kept = {"conv1": keep_indices(scores("conv1"), widths.stem)}
    bar = tqdm(list(spec.blocks()), desc="prune", unit="block", disable=not progress)
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


def _by_statistics(
    statistics: Mapping[str, ChannelStatistics], spec: CompressionSpec, criterion: str, progress: bool
) -> dict[str, Tensor]:
    full, widths = CompressionSpec.dense(spec.arch).widths(), spec.widths()
    sizes = {"conv1": (full.stem, widths.stem)}
    for stage, block in spec.blocks():
        sizes[f"layer{stage}"] = (full.stages[stage - 1], widths.stages[stage - 1])
        size = (full.blocks[stage - 1][block], widths.blocks[stage - 1][block])
        sizes[f"layer{stage}.{block}.conv1"] = sizes[f"layer{stage}.{block}.conv2"] = size
    score = get_criterion(criterion).score

    def choose(name: str) -> Tensor:
        before, after = sizes[name]
        if before == after:
            return torch.arange(before)
        return keep_indices(score(statistics[name].covariance, statistics[name].readers), after)

    bar = tqdm(sizes, desc="prune", unit="group", disable=not progress)
    return dict(zip(sizes, on_threads(choose, bar), strict=True))


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
    for stage, block in spec.blocks():
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


def cut_laterals(rest: Mapping[str, Tensor], kept: Mapping[str, Tensor | tuple[int, ...]]) -> dict[str, Tensor]:
    """What of a detector lies outside the ResNet, with the FPN's lateral convolutions cut to the channels kept.

    Args:
        rest: tensors of a Detectron2 or torchvision detector by name, without those of the ResNet.
        kept: of the report; ``layer1`` to ``layer4`` are used.
    """
    out = dict(rest)
    for name, stage in find_laterals(rest).items():
        out[name] = rest[name][:, torch.as_tensor(kept[f"layer{stage}"])]
    return out


def find_laterals(rest: Mapping[str, Tensor]) -> dict[str, int]:
    """Weights of the FPN's lateral convolutions by name, and the stage (1..4) that each reads.

    Raises:
        InputError: one does not read a dense ResNet.
    """
    found = {}
    for name, tensor in rest.items():
        if LATERAL.fullmatch(name):
            if tensor.ndim != 4 or tensor.shape[1] not in STAGE_WIDTHS:
                raise InputError(
                    f"{name}: expected (channels, {' or '.join(map(str, STAGE_WIDTHS))}, 1, 1), got "
                    f"{tuple(tensor.shape)}; use a detector with a dense ResNet"
                )
            found[name] = STAGE_WIDTHS.index(tensor.shape[1]) + 1  # a neck may leave stages out
    return found


def _relative(scores: Tensor) -> Tensor:
    """Scores on the scale of their mean, so that coupled layers count alike."""
    mean = scores.abs().mean()
    return scores / mean if mean > 0 else scores

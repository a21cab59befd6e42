"""Which channels stay, and the smaller state dict: surgery on tensors by torchvision's names.

*Coupled channels.* All layers that write one residual stream (the projection and the last convolution of every block
of a stage; with basic blocks the stem too, in stage 1) share one index set, from the sum of their scores. So the pruned
network computes exactly what the decomposed one computes with the dropped channels set to zero.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from ..decomposition.cp import Factors
from ..models.architecture import IMAGE, Architecture, Site
from ..models.layers import factors_to_state
from ..models.spec import CompressionSpec
from ..utils.errors import InputError
from ..utils.threads import on_threads
from .channel_statistics import ChannelStatistics
from .criteria import DataCriterion, get_criterion, keep_indices, norm

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
    """Sorted indices of the channels to keep, by channel set (see ``architecture``).

    A convolution without CP factors is scored by ``norm`` where the criterion needs factors (NORTON prunes 1x1 so).
    Factors are scored as the cut of their inputs leaves them, but for coupled layers: what these read may be chosen
    later.
    Criteria that need data get ``statistics``, which have all sets that are pruned.
    """
    chosen = get_criterion(criterion)
    if isinstance(chosen, DataCriterion):
        return _by_statistics(statistics or {}, spec, chosen, progress)
    widths, generator = spec.channels(), torch.Generator().manual_seed(seed)
    kept: dict[str, Tensor] = {}
    writers: dict[str, list[Site]] = {}
    for site in spec.architecture.sites:
        writers.setdefault(site.writes, []).append(site)

    def scores(site: Site, alone: bool) -> Tensor:
        of_site = factors.get(site.name)
        if of_site is not None and alone:
            of_site = of_site.inputs(kept[site.reads])  # as the filters are left by the cut of their input channels
        score = norm if chosen.needs_factors and of_site is None else chosen.score
        return score(state[f"{site.name}.weight"], of_site, generator)

    for channels, sites in tqdm(writers.items(), desc="prune", unit="set", disable=not progress):
        layer_scores = [scores(site, len(sites) == 1) for site in sites]
        if len(layer_scores) > 1:
            layer_scores = [torch.stack([_relative(score) for score in layer_scores]).sum(0)]
        total = layer_scores[0]
        kept[channels] = keep_indices(total, widths[channels])
    return kept


def _by_statistics(
    statistics: Mapping[str, ChannelStatistics], spec: CompressionSpec, criterion: DataCriterion, progress: bool
) -> dict[str, Tensor]:
    full, widths = spec.architecture.widths, spec.channels()
    names = [name for name in full if name != IMAGE]

    def choose(name: str) -> Tensor:
        if full[name] == widths[name]:
            return torch.arange(full[name])
        return keep_indices(criterion.score(statistics[name].covariance, statistics[name].readers), widths[name])

    bar = tqdm(names, desc="prune", unit="set", disable=not progress)
    return dict(zip(names, on_threads(choose, bar), strict=True))


def cut(
    state: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
    kept: Mapping[str, Tensor],
    spec: CompressionSpec,
) -> dict[str, Tensor]:
    """The state dict of ``NortonResNet(spec)``: the channels of ``kept``, 3x3 weights replaced by their factors."""
    out: dict[str, Tensor] = {}
    for site in spec.architecture.sites:
        outputs = kept[site.writes]
        inputs = torch.arange(3) if site.reads == IMAGE else kept[site.reads]
        if site.name in factors:
            factor_state = factors_to_state(factors[site.name].inputs(inputs).filters(outputs))
            out.update({f"{site.name}.{key}": tensor for key, tensor in factor_state.items()})
        else:
            out[f"{site.name}.weight"] = state[f"{site.name}.weight"][outputs][:, inputs]
        out.update({f"{site.norm}.{field}": state[f"{site.norm}.{field}"][outputs] for field in NORM_FIELDS})
        out[f"{site.norm}.num_batches_tracked"] = state[f"{site.norm}.num_batches_tracked"]
    out.update({name: state[name] for name in ("fc.weight", "fc.bias") if name in state})
    return out


def cut_laterals(
    rest: Mapping[str, Tensor], kept: Mapping[str, Tensor | tuple[int, ...]], arch: Architecture
) -> dict[str, Tensor]:
    """What of a detector lies outside the ResNet, with the FPN's lateral convolutions cut to the channels kept.

    Args:
        rest: tensors of a Detectron2 or torchvision detector by name, without those of the ResNet.
        kept: of the report; ``layer1`` to ``layer4`` are used.
        arch: of the ResNet.
    """
    out = dict(rest)
    for name, stage in find_laterals(rest, arch).items():
        out[name] = rest[name][:, torch.as_tensor(kept[f"layer{stage}"])]
    return out


def find_laterals(rest: Mapping[str, Tensor], arch: Architecture) -> dict[str, int]:
    """Weights of the FPN's lateral convolutions by name, and the stage (1..4) that each reads.

    Raises:
        InputError: one does not read a dense ResNet of that architecture.
    """
    laterals = {}
    for name, tensor in rest.items():
        if LATERAL.fullmatch(name):
            if tensor.ndim != 4 or tensor.shape[1] not in arch.outputs:
                raise InputError(
                    f"{name}: expected (channels, {' or '.join(map(str, arch.outputs))}, 1, 1), got "
                    f"{tuple(tensor.shape)}; use a detector with a dense ResNet"
                )
            laterals[name] = arch.outputs.index(tensor.shape[1]) + 1  # a neck may leave stages out
    return laterals


def _relative(scores: Tensor) -> Tensor:
    """Scores on the scale of their mean, so that coupled layers count alike."""
    mean = scores.abs().mean()
    return scores / mean if mean > 0 else scores

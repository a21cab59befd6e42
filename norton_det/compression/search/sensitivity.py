"""How much each width and each rank costs the network, on one scale for all layers: groups, and what weights tell.

A *group* (see ``costs``) has values to choose from and an error for each. Here the curves are those of the weights, and
a block counts by its share of its stage's output energy, as the scales of the normalisations tell it. Of a relative
error e then -log(1 - e) is summed: what is maximised is the product of the shares that are kept, so that no layer is
emptied for the others. What images tell of the same groups is measured by ``image_sensitivity``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from tqdm import tqdm

from ...models.architecture import ARCHITECTURES
from ...utils.errors import InputError
from .costs import Network, resnet_groups
from .error_curves import conv_ranks, matrix_ranks, weight_errors, width_grid
from .settings import SearchSettings


@dataclass(frozen=True)
class Group:
    """Values to choose from, the dense one first, each smaller than the one before, and the error of each."""

    name: str
    values: tuple[int | None, ...]
    errors: tuple[float, ...]

    @classmethod
    def scaled(cls, name: str, values: Sequence[int | None], curve: Sequence[float], scale: float) -> "Group":
        """A group whose errors are those of a curve times a scale; 0 for the dense value."""
        errors, worst = [], 0.0
        for error in curve:  # a smaller value is never better: what looks so is noise
            worst = max(worst, scale * error)
            errors.append(worst)
        return cls(name, tuple(values), (0.0, *errors[1:]))

    def error_of(self, value: int | None) -> float:
        """The error of a value, of a width between two by interpolation."""
        if value in self.values:
            return self.errors[self.values.index(value)]
        points = zip(self.values, self.errors, self.values[1:], self.errors[1:], strict=False)
        for high, above, low, below in points:
            if high is not None and low is not None and value is not None and low < value < high:
                return below + (above - below) * (value - low) / (high - low)
        raise InputError(f"{self.name}: expected one of {self.values}, got {value}; search again")


def groups_from_weights(
    network: Network, state: Mapping[str, Tensor], settings: SearchSettings, progress: bool = False
) -> list[Group]:
    """Errors of all values as the weights tell them.

    Args:
        network: the layers.
        state: tensors of the dense ResNet, by torchvision's names.
        settings: ranks to choose from, and filters to look at.
        progress: show a bar.
    """
    shares, groups = _energy_shares(network.arch, state), []
    inside = ARCHITECTURES[network.arch].convs[:-1]
    for name, width in tqdm([*resnet_groups(network.arch).items()], "weights", unit="group", disable=not progress):
        if width is not None:
            layers = len(inside) if "." in name else 1  # a block's width is that of all convolutions but its last
            curve = [layers * _log_kept(1 - value / width) for value in width_grid(width)]
            groups.append(Group.scaled(name, width_grid(width), curve, shares.get(name, 1.0)))
        else:
            scale = shares[name.rpartition(".")[0]]
            groups.append(_of_weight(name, state[f"{name}.weight"], conv_ranks(9, settings.ranks), scale, settings))
    heads = {candidate.part for candidate in network.around} - {"neck"}
    neck = sum(candidate.part == "neck" for candidate in network.around)
    for candidate in tqdm(network.around, "weights", unit="layer", disable=not progress):
        weight, largest = candidate.module.weight, candidate.largest_rank
        assert isinstance(weight, Tensor)
        linear = isinstance(candidate.module, nn.Linear)
        ranks = matrix_ranks(largest) if linear else conv_ranks(largest, settings.ranks)
        scale = 1 / neck if candidate.part == "neck" else 1 / max(1, len(heads))
        groups.append(_of_weight(candidate.name, weight, ranks, scale, settings))
    return groups


def _of_weight(name: str, weight: Tensor, ranks: Sequence[int | None], scale: float, settings: SearchSettings) -> Group:
    curve = [_log_kept(error) for error in weight_errors(weight, ranks, settings.filters)]
    return Group.scaled(name, ranks, curve, scale)


def _energy_shares(arch: str, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of each block in the energy of its stage's output, by the scales of the normalisations that are added."""
    shares: dict[str, float] = {}
    dense = ARCHITECTURES[arch]
    for stage in range(1, 5):
        sites = [site for site in dense.sites if site.writes == dense.stream(stage)]
        energies = [float(state[f"{site.norm}.weight"].double().square().sum()) for site in sites]
        for site, energy in zip(sites, energies, strict=True):
            if site.stage and not site.projection:
                shares[f"layer{stage}.{site.block}"] = energy / max(sum(energies), 1e-30)
    return shares


def _log_kept(error: float) -> float:
    return -math.log(1 - min(error, 0.99))

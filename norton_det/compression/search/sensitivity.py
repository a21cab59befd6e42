"""How much each choice of a width or a rank costs the network, on one scale for all layers.

A *group* (see ``cost_model``) has values to choose from and an error for each. With images the scale is what reaches
the ends of the network: the logits of a classifier; for a detector the RPN's scores and deltas, and the logits of its
heads on the dense detector's own regions. For each group one choice is made in the dense network, alone, and the
squared error at the ends (relative to their variance, averaged over the ends) is measured; the other choices follow
the layer's own error curve (``error_curves``) through that point. So a layer whose output hardly matters may be cut
deeply, whatever its own error.

Without images the curves are those of the weights, and a block counts by its share of its stage's output energy, as
the scales of the normalisations tell it. Of a relative error e then -log(1 - e) is summed: what is maximised is the
product of the shares that are kept, so that no layer is emptied for the others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...models.architecture import ARCHITECTURES
from ...models.resnet import NortonResNet
from ...models.spec import CompressionSpec
from ...utils.errors import InputError
from ...utils.threads import one_thread
from ..calibration import Calibration
from ..channel_statistics import ChannelStatistics, channel_statistics
from .costs import Network, resnet_groups
from .error_curves import ConvRows, css_errors, projection, rank_grid, weight_errors, width_grid
from .perturbation import Effect, Ends, projected, swapped

ROWS = 8192  # positions of each layer that are looked at
LINEAR_PROBE = 64  # rank at which the effect of a matrix is measured


@dataclass(frozen=True)
class Group:
    """Values to choose from, the dense one first, each smaller than the one before, and the error of each."""

    name: str
    values: tuple[int | None, ...]
    errors: tuple[float, ...]

    def error_of(self, value: int | None) -> float:
        """The error of a value, of a width between two by interpolation."""
        if value in self.values:
            return self.errors[self.values.index(value)]
        points = zip(self.values, self.errors, self.values[1:], self.errors[1:], strict=False)
        for high, above, low, below in points:
            if high is not None and low is not None and value is not None and low < value < high:
                return below + (above - below) * (value - low) / (high - low)
        raise InputError(f"{self.name}: expected one of {self.values}, got {value}; search again")


def groups_from_weights(network: Network, state: Mapping[str, Tensor], progress: bool = False) -> list[Group]:
    """Errors of all choices as the weights tell them.

    Args:
        network: the layers.
        state: tensors of the dense ResNet, by torchvision's names.
        progress: show a bar.
    """
    shares, found = _energy_shares(network.arch, state), []
    parts = {each.part for each in network.around} - {"neck"}
    count = {part: sum(each.part == part for each in network.around) for part in ("neck", *parts)}
    groups, inside = resnet_groups(network.arch), ARCHITECTURES[network.arch].convs[:-1]
    for name, width in tqdm([*groups.items()], "weights", unit="group", disable=not progress):
        if width is not None:
            layers = len(inside) if "." in name else 1  # a block's width is that of all convolutions but its last
            lost = [layers * _log_kept(1 - value / width) for value in width_grid(width)]
            found.append(_group(name, width_grid(width), lost, shares.get(name, 1.0)))
        else:
            ranks = rank_grid(9, False)
            lost = [_log_kept(error) for error in weight_errors(state[f"{name}.weight"], ranks)]
            found.append(_group(name, ranks, lost, shares[name.rpartition(".")[0]]))
    for each in tqdm(network.around, "weights", unit="layer", disable=not progress):
        ranks = rank_grid(each.largest_rank, isinstance(each.module, nn.Linear))
        weight = each.module.weight
        assert isinstance(weight, Tensor)
        scale = 1 / count["neck"] if each.part == "neck" else 1 / max(1, len(parts))
        found.append(_group(each.name, ranks, [_log_kept(error) for error in weight_errors(weight, ranks)], scale))
    return found


@torch.no_grad()
def groups_from_images(
    network: Network,
    resnet: NortonResNet,
    images: Tensor,
    model: nn.Module,
    prefix: str,
    probe: Ends,
    runs: Sequence[Callable[[], object]] = (),
    progress: bool = False,
) -> list[Group]:
    """Errors of all choices as they are measured at the ends of the network.

    Args:
        network: the layers.
        resnet: the dense ResNet alone, eval mode.
        images: (N, 3, S, S), preprocessed, from which its layers' own errors are taken.
        model: the whole dense network, eval mode; it is as it was afterwards.
        prefix: of the ResNet's names in it.
        probe: runs the model on a few images and gives its ends, each a list of tensors.
        runs: run the model on images, one by one, for the layers around the ResNet.
        progress: show bars.
    """
    arch = network.arch
    half = CompressionSpec((0.5,) * len(ARCHITECTURES[arch].pruned), None, arch)
    statistics = channel_statistics(resnet, half, Calibration(images, rows=ROWS, batch_size=8), progress)
    convs = _listen_resnet(network, resnet, images, progress)
    matrices: dict[str, list[Tensor]] = {}
    around = {each.name: each.module for each in network.around}
    convs |= _listen_around(around, runs, matrices, progress)
    ends, readers = Effect(probe), _readers(network, model, prefix)
    largest = {each.name: each.largest_rank for each in network.around}
    found = []
    for name in tqdm([*resnet_groups(arch), *around], "sensitivity", unit="group", disable=not progress):
        if name in readers:
            found.append(_of_width(name, resnet_groups(arch)[name] or 0, readers[name], statistics, ends))
            continue
        target = around.get(name) or model.get_submodule(f"{prefix}{name}")
        assert isinstance(target, nn.Conv2d | nn.Linear)
        ranks = rank_grid(largest.get(name, 9), isinstance(target, nn.Linear))
        if isinstance(target, nn.Conv2d) and name in convs:
            if len(ranks) > 1:
                found.append(_of_conv(name, target, convs.pop(name), ranks, ends))
        elif isinstance(target, nn.Linear) and name in matrices:
            found.append(_of_matrix(name, target, torch.cat(matrices.pop(name)), ranks, ends))
        else:  # it did not run on these images, so its weights have to do
            found.append(_group(name, ranks, weight_errors(target.weight, ranks), 1.0))
    return found


def _of_width(
    name: str,
    width: int,
    readers: Mapping[str, Sequence[nn.Module]],
    statistics: Mapping[str, ChannelStatistics],
    ends: Effect,
) -> Group:
    """Channels from what can be predicted of those that are dropped; ``readers``: modules by their statistics."""
    values = width_grid(width)
    keep = values[len(values) // 2]
    curve, changes = torch.zeros(len(values), dtype=torch.double), []
    for statistic, modules in readers.items():
        order, errors = css_errors(statistics[statistic])
        curve += errors[torch.tensor(values)]
        matrix = projection(statistics[statistic].covariance, order, keep).float()
        changes += [projected(module, matrix) for module in modules]
    return _scaled(name, values, curve.tolist(), ends.of(changes), float(curve[values.index(keep)]))


def _of_conv(name: str, conv: nn.Conv2d, rows: ConvRows, values: list[int | None], ends: Effect) -> Group:
    """A convolution from the fits of its sampled filters; the effect is that of the lowest rank."""
    with one_thread():
        fits = rows.fit([rank for rank in values if rank])
    last = fits[-1]
    weight = conv.weight.detach().clone()
    weight[last.filters] = last.weight
    bias = torch.zeros(len(weight)) if conv.bias is None else conv.bias.detach().clone()
    bias[last.filters] += last.shift
    effect = ends.of([swapped(conv, weight, bias)]) * len(weight) / len(last.filters)
    return _scaled(name, values, [0.0, *(fit.error for fit in fits)], effect, last.error)


def _of_matrix(name: str, linear: nn.Linear, rows: Tensor, values: list[int | None], ends: Effect) -> Group:
    """A linear layer from its outputs (rows, O): the share of their variance outside the best subspace of each rank."""
    weight = linear.weight.detach().double()
    covariance, energy = torch.cov(rows.double().T), weight @ weight.T
    # few rows do not show all directions: those that are missing count as the weights have them
    share = 1e-2 * covariance.diagonal().mean() / energy.diagonal().mean().clamp_min(1e-30)
    energies, basis = torch.linalg.eigh(covariance + share * energy)
    left = energies.clamp_min(0.0).cumsum(0) / energies.clamp_min(0.0).sum().clamp_min(1e-300)  # (O,)
    curve = [float(left[len(left) - rank - 1]) if rank and rank < len(left) else 0.0 for rank in values]
    probe = min(range(1, len(values)), key=lambda index: abs((values[index] or 0) - LINEAR_PROBE), default=0)
    if not probe:
        return Group(name, (None,), (0.0,))
    subspace = basis[:, -(values[probe] or 1) :]
    flat, mean = subspace @ subspace.T, rows.double().mean(0)
    bias = torch.zeros(len(weight)).double() if linear.bias is None else linear.bias.detach().double()
    effect = ends.of([swapped(linear, (flat @ weight).float(), (mean + flat @ (bias - mean)).float())])
    return _scaled(name, values, curve, effect, curve[probe])


def _readers(network: Network, model: nn.Module, prefix: str) -> dict[str, dict[str, list[nn.Module]]]:
    """By group of a width: the names of its statistics, and the modules that read those channels."""
    found: dict[str, dict[str, list[nn.Module]]] = {}
    modules, sets = dict(model.named_modules()), {site.name: site.reads for site in ARCHITECTURES[network.arch].sites}
    for layer in network.layers:
        group = layer.inputs
        if not isinstance(group, str):
            continue
        module = modules.get(prefix + layer.name) or modules[layer.name]  # laterals have their whole name
        found.setdefault(group, {}).setdefault(sets.get(layer.name, group), []).append(module)
    return found


def _listen_resnet(network: Network, resnet: NortonResNet, images: Tensor, progress: bool) -> dict[str, ConvRows]:
    """Rows of every 3x3 convolution of the ResNet."""
    rows: dict[str, ConvRows] = {}
    generator, handles = torch.Generator().manual_seed(0), []
    take = max(1, ROWS // len(images))
    for site in ARCHITECTURES[network.arch].sites:
        if not site.factored:
            continue
        name = site.name
        conv, norm = resnet.get_submodule(name), resnet.get_submodule(site.norm)
        assert isinstance(conv, nn.Conv2d)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # type: ignore[operator]
        rows[name] = ConvRows(name, conv, ROWS, scale.detach())
        handles.append(conv.register_forward_pre_hook(_collect(rows[name], take, generator)))
    try:
        for part in tqdm(images.split(8), "layers", unit="batch", disable=not progress):
            resnet(part)
    finally:
        for handle in handles:
            handle.remove()
    return rows


def _listen_around(
    around: Mapping[str, nn.Module],
    runs: Sequence[Callable[[], object]],
    matrices: dict[str, list[Tensor]],
    progress: bool,
) -> dict[str, ConvRows]:
    """Rows of the convolutions around the ResNet; outputs of the linear layers go to ``matrices``."""
    rows: dict[str, ConvRows] = {}
    generator, handles = torch.Generator().manual_seed(0), []
    take = max(1, ROWS // max(1, len(runs)))
    for name, module in around.items():
        if isinstance(module, nn.Conv2d):
            rows[name] = ConvRows(name, module, ROWS)
            handles.append(module.register_forward_pre_hook(_collect(rows[name], take, generator)))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(_keep(name, matrices)))
    try:
        for run in tqdm(runs, "layers around", unit="image", disable=not progress):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: part for name, part in rows.items() if part.moments.count > 1}


def _collect(rows: ConvRows, take: int, generator: torch.Generator) -> Callable[..., None]:
    return lambda _module, inputs: rows.add(inputs[0], take * len(inputs[0]), generator)


def _keep(name: str, matrices: dict[str, list[Tensor]]) -> Callable[..., None]:
    return lambda _module, _inputs, output: matrices.setdefault(name, []).append(output.detach())


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


def _scaled(name: str, values: Sequence[int | None], curve: Sequence[float], effect: float, at: float) -> Group:
    """A curve scaled so that the choice whose own error is ``at`` has the measured ``effect``."""
    return _group(name, values, curve, effect / max(at, 1e-9))


def _group(name: str, values: Sequence[int | None], curve: Sequence[float], scale: float) -> Group:
    errors, worst = [], 0.0
    for error in curve:  # a smaller choice is never better: what looks so is noise
        worst = max(worst, scale * error)
        errors.append(worst)
    return Group(name, tuple(values), (0.0, *errors[1:]))

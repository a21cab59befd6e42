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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .calibration import Calibration
from .channels import channel_statistics
from .compress import one_thread
from .cost_model import Network, resnet_groups
from .error_curves import ConvRows, css_errors, projection, rank_grid, weight_errors, width_grid
from .errors import InputError
from .resnet import NortonResNet
from .spec import CompressionSpec

ROWS = 8192  # positions of each layer that are looked at
LINEAR_PROBE = 64  # rank at which the effect of a matrix is measured
Ends = Callable[[], list[list[Tensor]]]


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
    groups = resnet_groups(network.arch)
    for name, width in tqdm([*groups.items()], "weights", unit="group", disable=not progress):
        if width is not None:
            layers = 2 if "." in name else 1  # a block's width is that of two convolutions
            lost = [layers * _log_kept(1 - value / width) for value in width_grid(width)]
            found.append(_group(name, width_grid(width), lost, shares.get(name, 1.0)))
        else:
            ranks = rank_grid(9, False)
            lost = [_log_kept(error) for error in weight_errors(state[f"{name}.weight"], ranks)]
            found.append(_group(name, ranks, lost, shares[name.removesuffix(".conv2")]))
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
    half = CompressionSpec((0.5,) * (4 + resnet.spec.num_blocks), None, arch)
    statistics = channel_statistics(resnet, half, Calibration(images, rows=ROWS, batch_size=8), progress)
    convs = _listen_resnet(network, resnet, images, progress)
    matrices: dict[str, list[Tensor]] = {}
    around = {each.name: each.module for each in network.around}
    convs |= _listen_around(around, runs, matrices, progress)
    ends = _Effect(probe)
    readers = _readers(network, model, prefix)
    found = []
    for name in tqdm([*resnet_groups(arch), *around], "sensitivity", unit="group", disable=not progress):
        if name in readers:
            values: list[int | None] = list(width_grid(resnet_groups(arch)[name] or 0))
            keep = values[len(values) // 2] or 1
            curve, swaps = torch.zeros(len(values), dtype=torch.double), []
            for statistic, modules in readers[name].items():
                order, errors = css_errors(statistics[statistic])
                curve += errors[torch.tensor(values)]
                matrix = projection(statistics[statistic].covariance, order, keep).float()
                swaps += [_projected(module, matrix) for module in modules]
            found.append(_scaled(name, values, curve.tolist(), ends.of(swaps), float(curve[values.index(keep)])))
        elif name in convs:
            target = around.get(name) or model.get_submodule(f"{prefix}{name}")
            assert isinstance(target, nn.Conv2d)
            values = rank_grid(_largest(network, name), False)
            with one_thread():
                fits = convs.pop(name).fit([rank for rank in values if rank])
            curve_ = [0.0, *(fit.error for fit in fits)]
            if not fits:
                continue
            last = fits[-1]
            weight = target.weight.detach().clone()
            weight[last.filters] = last.weight
            bias = torch.zeros(len(weight)) if target.bias is None else target.bias.detach().clone()
            bias[last.filters] += last.shift
            effect = ends.of([_swapped(target, weight, bias)]) * len(weight) / len(last.filters)
            found.append(_scaled(name, values, curve_, effect, last.error))
        elif name in matrices:
            target = around[name]
            assert isinstance(target, nn.Linear)
            values = rank_grid(_largest(network, name), True)
            found.append(_of_matrix(name, target, torch.cat(matrices.pop(name)), values, ends))
        else:  # it did not run on these images, so its weights have to do
            ranks = rank_grid(_largest(network, name), isinstance(around[name], nn.Linear))
            found.append(_group(name, ranks, weight_errors(around[name].weight, ranks), 1.0))  # type: ignore[arg-type]
    return found


def _of_matrix(name: str, linear: nn.Linear, rows: Tensor, values: list[int | None], ends: "_Effect") -> Group:
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
    effect = ends.of([_swapped(linear, (flat @ weight).float(), (mean + flat @ (bias - mean)).float())])
    return _scaled(name, values, curve, effect, curve[probe])


class _Effect:
    """Squared error at the ends of a network, relative to their variance, with something changed in it."""

    def __init__(self, probe: Ends) -> None:
        self.probe = probe
        self.reference = probe()

    def of(self, changes: Sequence["_Change"]) -> float:
        with _all(changes):
            found = self.probe()
        errors = []
        for end, dense in zip(found, self.reference, strict=True):
            parts = [
                float((y - x).square().sum() / (x - x.mean()).square().sum().clamp_min(1e-30))
                for y, x in zip(end, dense, strict=True)
                if x.numel()
            ]
            errors.append(sum(min(part, 2.0) for part in parts) / max(1, len(parts)))
        return sum(errors) / max(1, len(errors))


_Change = Callable[[], Callable[[], None]]
"""Makes a change and returns what takes it back."""


@contextmanager
def _all(changes: Sequence[_Change]) -> Iterator[None]:
    undo = [change() for change in changes]
    try:
        yield
    finally:
        for back in undo:
            back()


def _projected(module: nn.Module, matrix: Tensor) -> _Change:
    """Give a convolution what the kept channels tell of its inputs (N, C, H, W); matrix (C, C)."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mean = inputs[0].mean((0, 2, 3), keepdim=True)
        return (F.conv2d(inputs[0] - mean, matrix[:, :, None, None]) + mean,)

    return lambda: module.register_forward_pre_hook(hook).remove


def _swapped(module: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> _Change:
    """Other weights in a layer."""

    def change() -> Callable[[], None]:
        old = module.weight, module.bias

        def back() -> None:
            module.weight, module.bias = old

        module.weight, module.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))
        return back

    return change


def _readers(network: Network, model: nn.Module, prefix: str) -> dict[str, dict[str, list[nn.Module]]]:
    """By group of a width: the names of its statistics, and the modules that read those channels."""
    found: dict[str, dict[str, list[nn.Module]]] = {}
    modules = dict(model.named_modules())
    for layer in network.layers:
        group = layer.inputs
        if not isinstance(group, str):
            continue
        module = modules.get(prefix + layer.name) or modules[layer.name]  # laterals have their whole name
        last = layer.name.rpartition(".")[2]
        statistic = {"conv2": f"{group}.conv1", "conv3": f"{group}.conv2"}.get(last, group)
        found.setdefault(group, {}).setdefault(statistic, []).append(module)
    return found


def _listen_resnet(network: Network, resnet: NortonResNet, images: Tensor, progress: bool) -> dict[str, ConvRows]:
    """Rows of every 3x3 convolution of the ResNet."""
    rows: dict[str, ConvRows] = {}
    generator, handles = torch.Generator().manual_seed(0), []
    take = max(1, ROWS // len(images))
    for stage, block in resnet.spec.blocks():
        name = f"layer{stage}.{block}.conv2"
        conv, norm = resnet.get_submodule(name), resnet.get_submodule(name.replace("conv2", "bn2"))
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


def _largest(network: Network, name: str) -> int:
    return next((each.largest_rank for each in network.around if each.name == name), 9)


def _energy_shares(arch: str, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of each block in the energy of its stage's output, by the scales of the normalisations that are added."""
    shares: dict[str, float] = {}
    for stage, depth in enumerate(CompressionSpec.dense(arch).depths, 1):
        names = [f"layer{stage}.{block}" for block in range(depth)]
        energies = [float(state[f"{name}.bn3.weight"].double().square().sum()) for name in names]
        total = sum(energies) + float(state[f"layer{stage}.0.downsample.1.weight"].double().square().sum())
        shares |= {name: energy / max(total, 1e-30) for name, energy in zip(names, energies, strict=True)}
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

"""How much each width and each rank costs the network, measured on images: on one scale for all layers.

The scale is what reaches the outputs of the network: the logits of a classifier; for a detector the RPN's scores and
deltas, and the logits of its heads on the dense detector's own regions. For each group one value is taken in the dense
network, alone, and the squared error at the outputs (relative to their variance, averaged over the network's ends) is
measured; the other values follow the layer's own error curve (``error_curves``) through that point. So a layer whose
output hardly matters may be cut deeply, whatever its own error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...decomposition.low_rank import output_directions
from ...models.architecture import ARCHITECTURES
from ...models.fuse import norm_scale
from ...models.resnet import NortonResNet
from ...models.spec import CompressionSpec
from ...utils.hooks import hooked
from ...utils.threads import one_thread
from ..calibration import Calibration
from ..channel_statistics import ChannelStatistics, channel_statistics
from ..criteria import css_curve
from .costs import Network, resnet_groups
from .error_curves import SAMPLE_FIT, ConvRows, conv_ranks, matrix_ranks, projection, weight_errors, width_grid
from .perturbation import Distortion, Outputs, predicted_inputs, swapped_weights
from .sensitivity import Group
from .settings import SearchSettings

MEASURED_RANK = 64  # at which the distortion by a matrix is measured
BATCH = 8  # images


@dataclass(frozen=True)
class ImageProbe:
    """What is run, and on what, to measure the sensitivity of a dense network.

    Attributes:
        model: the whole network, eval mode.
        prefix: of the ResNet's names in it.
        resnet: the ResNet alone, eval mode.
        images: (N, 3, S, S), preprocessed, from which the ResNet's own errors are taken.
        outputs: runs the model on a few images and gives its outputs.
        runs: run the model on images, one by one, for the layers around the ResNet.
    """

    model: nn.Module
    prefix: str
    resnet: NortonResNet
    images: Tensor
    outputs: Outputs
    runs: Sequence[Callable[[], object]] = ()


@torch.no_grad()
def groups_from_images(
    network: Network, probe: ImageProbe, settings: SearchSettings, progress: bool = False
) -> list[Group]:
    """Errors of all values as they are measured at the outputs of the network; it is as it was afterwards.

    Raises:
        InputError: activations that are not finite, or too few; the layer is named.
    """
    arch = network.arch
    half = CompressionSpec((0.5,) * len(ARCHITECTURES[arch].pruned), None, arch)
    calibration = Calibration(probe.images, rows=settings.rows, batch_size=BATCH)
    statistics = channel_statistics(probe.resnet, half, calibration, progress)
    convs = _resnet_rows(network, probe, settings, progress)
    around = {candidate.name: candidate.module for candidate in network.around}
    convs_around, matrices = _rows_around(around, probe, settings, progress)
    convs |= convs_around
    distortion, readers = Distortion(probe.outputs), _readers(network, probe)
    largest = {candidate.name: candidate.largest_rank for candidate in network.around}
    groups = []
    for name in tqdm([*resnet_groups(arch), *around], "sensitivity", unit="group", disable=not progress):
        if name in readers:
            width = resnet_groups(arch)[name]
            assert width is not None
            groups.append(_of_width(name, width, readers[name], statistics, distortion))
            continue
        layer = around.get(name) or probe.model.get_submodule(f"{probe.prefix}{name}")
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        limit = largest.get(name, 9)
        ranks = matrix_ranks(limit) if isinstance(layer, nn.Linear) else conv_ranks(limit, settings.ranks)
        if isinstance(layer, nn.Conv2d) and name in convs:
            if len(ranks) > 1:
                groups.append(_of_conv(name, layer, convs.pop(name), ranks, distortion))
        elif isinstance(layer, nn.Linear) and name in matrices:
            groups.append(_of_matrix(name, layer, torch.cat(matrices.pop(name)), ranks, distortion))
        else:  # it did not run on these images, so its weights have to do
            groups.append(Group.scaled(name, ranks, weight_errors(layer.weight, ranks, settings.filters), 1.0))
    return groups


def _of_width(
    name: str,
    width: int,
    readers: Mapping[str, Sequence[nn.Module]],
    statistics: Mapping[str, ChannelStatistics],
    distortion: Distortion,
) -> Group:
    """Channels from what can be predicted of those that are dropped; ``readers``: modules by their channel set."""
    values = width_grid(width)
    keep = values[len(values) // 2]
    curve, perturbations = torch.zeros(len(values), dtype=torch.double), []
    for channels, modules in readers.items():
        covariance = statistics[channels].covariance
        order, errors = css_curve(covariance, statistics[channels].readers)
        curve += errors[torch.tensor(values)]
        matrix = projection(covariance, order, keep).float()
        perturbations += [predicted_inputs(module, matrix) for module in modules]
    measured = distortion.under(perturbations)
    return _through(name, values, curve.tolist(), float(curve[values.index(keep)]), measured)


def _of_conv(name: str, conv: nn.Conv2d, rows: ConvRows, ranks: Sequence[int | None], distortion: Distortion) -> Group:
    """A convolution from the fits of its sampled filters; measured is the lowest rank."""
    with one_thread():
        fits = rows.fit([rank for rank in ranks if rank])
    lowest = fits[-1]
    weight = conv.weight.detach().clone()
    weight[lowest.filters] = lowest.weight
    bias = torch.zeros(len(weight)) if conv.bias is None else conv.bias.detach().clone()
    bias[lowest.filters] += lowest.shift
    measured = distortion.under([swapped_weights(conv, weight, bias)]) * len(weight) / len(lowest.filters)
    return _through(name, ranks, [0.0, *(fit.error for fit in fits)], lowest.error, measured)


def _of_matrix(
    name: str, linear: nn.Linear, rows: Tensor, ranks: Sequence[int | None], distortion: Distortion
) -> Group:
    """A linear layer from its outputs (rows, O): the share of their variance outside the best subspace of each rank."""
    energies, basis = output_directions(rows, linear.weight, SAMPLE_FIT.ridge)
    left = energies.clamp_min(0.0).cumsum(0) / energies.clamp_min(0.0).sum().clamp_min(1e-300)  # (O,)
    curve = [float(left[len(left) - rank - 1]) if rank and rank < len(left) else 0.0 for rank in ranks]
    tried = min(range(1, len(ranks)), key=lambda index: abs((ranks[index] or 0) - MEASURED_RANK), default=0)
    if not tried:
        return Group(name, (None,), (0.0,))
    weight, subspace = linear.weight.detach().double(), basis[:, -(ranks[tried] or 1) :]
    projector, mean = subspace @ subspace.T, rows.double().mean(0)
    bias = torch.zeros(len(weight)).double() if linear.bias is None else linear.bias.detach().double()
    shift = (mean + projector @ (bias - mean)).float()
    measured = distortion.under([swapped_weights(linear, (projector @ weight).float(), shift)])
    return _through(name, ranks, curve, curve[tried], measured)


def _through(name: str, values: Sequence[int | None], curve: Sequence[float], error: float, measured: float) -> Group:
    """A curve scaled so that the value whose own error is ``error`` has the measured one."""
    return Group.scaled(name, values, curve, measured / max(error, 1e-9))


def _readers(network: Network, probe: ImageProbe) -> dict[str, dict[str, list[nn.Module]]]:
    """By group of a width: its channel sets, and the modules that read each."""
    readers: dict[str, dict[str, list[nn.Module]]] = {}
    modules = dict(probe.model.named_modules())
    channel_sets = {site.name: site.reads for site in ARCHITECTURES[network.arch].sites}
    for layer in network.layers:
        group = layer.inputs
        if not isinstance(group, str):
            continue
        module = modules.get(probe.prefix + layer.name) or modules[layer.name]  # laterals have their whole name
        readers.setdefault(group, {}).setdefault(channel_sets.get(layer.name, group), []).append(module)
    return readers


def _resnet_rows(network: Network, probe: ImageProbe, settings: SearchSettings, progress: bool) -> dict[str, ConvRows]:
    """Rows of every 3x3 convolution of the ResNet."""
    rows: dict[str, ConvRows] = {}
    for site in ARCHITECTURES[network.arch].sites:
        if site.factored:
            conv, norm = probe.resnet.get_submodule(site.name), probe.resnet.get_submodule(site.norm)
            assert isinstance(conv, nn.Conv2d)
            rows[site.name] = ConvRows(site.name, conv, settings, norm_scale(norm).detach())
    batches = [partial(probe.resnet, batch) for batch in probe.images.split(BATCH)]
    _collect(rows, tqdm(batches, "layers", unit="batch", disable=not progress), settings.rows // len(probe.images))
    return rows


def _rows_around(
    around: Mapping[str, nn.Module], probe: ImageProbe, settings: SearchSettings, progress: bool
) -> tuple[dict[str, ConvRows], dict[str, list[Tensor]]]:
    """Rows of the convolutions around the ResNet that ran, and outputs of the linear layers."""
    rows = {name: ConvRows(name, conv, settings) for name, conv in around.items() if isinstance(conv, nn.Conv2d)}
    outputs: dict[str, list[Tensor]] = {}
    runs = tqdm(probe.runs, "layers around", unit="image", disable=not progress)
    linears = {name: linear for name, linear in around.items() if isinstance(linear, nn.Linear)}
    keep = [(linear, partial(_keep, outputs.setdefault(name, []))) for name, linear in linears.items()]
    with hooked(outputs=keep):
        _collect(rows, runs, settings.rows // max(1, len(probe.runs)))
    ran = {name: conv_rows for name, conv_rows in rows.items() if conv_rows.moments.count > 1}
    return ran, {name: kept for name, kept in outputs.items() if kept}


def _keep(outputs: list[Tensor], _module: nn.Module, _inputs: object, output: Tensor) -> None:
    outputs.append(output.detach())


def _collect(rows: Mapping[str, ConvRows], runs: Iterable[Callable[[], object]], per_image: int) -> None:
    """Run a network, and take positions of each image at what the convolutions read."""
    generator = torch.Generator().manual_seed(0)

    def add(conv_rows: ConvRows, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        conv_rows.add(inputs[0], max(1, per_image) * len(inputs[0]), generator)

    with hooked(inputs=[(conv_rows.conv, partial(add, conv_rows)) for conv_rows in rows.values()]):
        for run in runs:
            run()

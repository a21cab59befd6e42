"""What data say of channels: how they vary together, and who reads them. For criteria that look at both.

Of each channel set (see ``architecture``), which one convolution, or all of a residual stream, write. Its readers are
the layers that take them as input, batch normalisation folded in.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..decomposition.moments import Moments
from ..models.fuse import folded_weight
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..utils.hooks import OutputHook, hooked
from ..utils.threads import on_threads
from .calibration import Calibration
from .sampling import rows_of


@dataclass(frozen=True)
class ChannelStatistics:
    """One set of C channels.

    Attributes:
        covariance: of their values after the activation, over images and positions, (C, C), float64, on the CPU.
        readers: weights that read them, one row for each output and kernel position, (rows, C).
    """

    covariance: Tensor
    readers: Tensor


@torch.no_grad()
def channel_statistics(
    dense: NortonResNet, spec: CompressionSpec, calibration: Calibration, progress: bool = False
) -> dict[str, ChannelStatistics]:
    """Statistics of every channel set that ``spec`` prunes, from one pass of the dense network over the images.

    Raises:
        InputError: activations that are not finite; the layer is named.
    """
    full, widths = dense.spec.channels(), spec.channels()
    taps: dict[str, tuple[nn.Module, bool]] = {}  # module whose output is looked at, whether a ReLU comes after it
    readers: dict[str, list[Tensor]] = {}
    groups: dict[str, str] = {}  # tap -> channel set

    def tap(name: str, module: nn.Module, channels: str, activation: bool) -> None:
        if widths[channels] < full[channels]:
            taps[name], groups[name] = (module, activation), channels

    tap("conv1", dense.maxpool, spec.architecture.stream(0), False)
    for stage, index in spec.blocks():
        tap(f"layer{stage}.{index}", dense.get_submodule(f"layer{stage}.{index}"), f"layer{stage}", False)
    for site in spec.architecture.sites:
        if site.writes == site.name and site.stage:  # the channels inside a block
            tap(site.name, dense.get_submodule(site.norm), site.writes, True)
        weight = folded_weight(dense.get_submodule(site.name), dense.get_submodule(site.norm))
        readers.setdefault(site.reads, []).append(weight.permute(0, 2, 3, 1).flatten(0, 2))
    covariances = _covariances(dense, taps, calibration, progress)
    statistics: dict[str, ChannelStatistics] = {}
    for channels in dict.fromkeys(groups.values()):
        parts = [covariances[name] for name in taps if groups[name] == channels]
        total = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        statistics[channels] = ChannelStatistics(total, torch.cat(readers[channels]).double().cpu())
    return statistics


def _covariances(
    dense: NortonResNet, taps: dict[str, tuple[nn.Module, bool]], calibration: Calibration, progress: bool
) -> dict[str, Tensor]:
    draw = calibration.sampler()
    sums = {name: Moments(name) for name in taps}
    sizes: dict[str, tuple[int, ...]] = {}  # of the tapped maps, in the order in which they come
    of_batch = threading.local()  # of the batch on a thread: the positions to look at, and the rows there

    def listen(name: str, activation: bool) -> OutputHook:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            if name not in sizes:
                sizes[name] = tuple(output.shape[2:])
                return
            values = rows_of(output, of_batch.positions[name])
            of_batch.rows[name] = values.relu() if activation else values

        return hook

    def batches() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for images in calibration.batches():
            maps = images.new_empty(1)
            yield images, {name: draw(maps.expand(len(images), 1, *size)) for name, size in sizes.items()}

    def run(batch: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
        images, of_batch.positions = batch
        of_batch.rows = {}
        dense(images)
        return of_batch.rows

    hooks = [(module, listen(name, active)) for name, (module, active) in taps.items()]
    with hooked(outputs=hooks):
        total = -(-len(calibration.images) // calibration.batch_size)
        dense(calibration.place(calibration.images[:1]))  # for the sizes
        batches_of_rows = on_threads(run, batches())
        for rows in tqdm(batches_of_rows, "channels", total, unit="batch", disable=not progress):
            for name, values in rows.items():
                sums[name].add(values, values[:, :0])
    return {name: moments.finish().xx.cpu() for name, moments in sums.items()}

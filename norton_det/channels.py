"""What data say of channels: how they vary together, and who reads them. For criteria that look at both.

A group is the channels that one convolution, or all of one residual stream, write (the names of ``prune``). Its
readers are the layers that take them as input, batch normalisation folded in.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .calibration import Calibration, folded_weight, rows_of
from .moments import Moments
from .resnet import Bottleneck, NortonResNet
from .spec import CompressionSpec
from .threads import on_threads


@dataclass(frozen=True)
class ChannelStatistics:
    """One group of C channels.

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
    """Statistics of every group that ``spec`` prunes, from one pass of the dense network over the images.

    Raises:
        InputError: activations that are not finite; the layer is named.
    """
    full, widths = dense.spec.widths(), spec.widths()
    taps: dict[str, tuple[nn.Module, bool]] = {}  # module whose output is looked at, whether a ReLU comes after it
    readers: dict[str, list[Tensor]] = {}
    groups: dict[str, str] = {}  # tap -> group

    def tap(name: str, module: nn.Module, group: str, activation: bool) -> None:
        taps[name], groups[name] = (module, activation), group

    if widths.stem < full.stem:
        tap("conv1", dense.maxpool, "conv1", False)
    stream = "conv1"
    for stage, index in spec.blocks():
        name = f"layer{stage}.{index}"
        block = dense.get_submodule(name)
        assert isinstance(block, Bottleneck)
        firsts: list[tuple[nn.Module, nn.Module]] = [(block.conv1, block.bn1)]
        if block.downsample is not None:
            firsts.append((block.downsample[0], block.downsample[1]))
        readers.setdefault(stream, []).extend(folded_weight(*first).flatten(1) for first in firsts)
        stream = f"layer{stage}"
        if widths.stages[stage - 1] < full.stages[stage - 1]:
            tap(name, block, stream, False)
        if widths.blocks[stage - 1][index] < full.blocks[stage - 1][index]:
            tap(f"{name}.conv1", block.bn1, f"{name}.conv1", True)
            tap(f"{name}.conv2", block.bn2, f"{name}.conv2", True)
            second = folded_weight(block.conv2, block.bn2)
            readers[f"{name}.conv1"] = [second.permute(0, 2, 3, 1).flatten(0, 2)]
            readers[f"{name}.conv2"] = [folded_weight(block.conv3, block.bn3).flatten(1)]
    covariances = _covariances(dense, taps, calibration, progress)
    found: dict[str, ChannelStatistics] = {}
    for group in dict.fromkeys(groups.values()):
        parts = [covariances[name] for name in taps if groups[name] == group]
        total = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        found[group] = ChannelStatistics(total, torch.cat(readers[group]).double().cpu())
    return found


def _covariances(
    dense: NortonResNet, taps: dict[str, tuple[nn.Module, bool]], calibration: Calibration, progress: bool
) -> dict[str, Tensor]:
    draw = calibration.sampler()
    sums = {name: Moments(name) for name in taps}
    sizes: dict[str, tuple[int, ...]] = {}  # of the tapped maps, in the order in which they come
    own = threading.local()  # of the batch on a thread: the positions to look at, and the rows found there

    def listen(name: str, activation: bool) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            if name not in sizes:
                sizes[name] = tuple(output.shape[2:])
                return
            values = rows_of(output, own.positions[name])
            own.rows[name] = values.relu() if activation else values

        return hook

    def batches() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for images in calibration.batches():
            maps = images.new_empty(1)
            yield images, {name: draw(maps.expand(len(images), 1, *size)) for name, size in sizes.items()}

    def run(batch: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
        images, own.positions = batch
        own.rows = {}
        dense(images)
        return own.rows

    handles = [module.register_forward_hook(listen(name, active)) for name, (module, active) in taps.items()]
    try:
        total = -(-len(calibration.images) // calibration.batch_size)
        dense(calibration.place(calibration.images[:1]))  # for the sizes
        found = on_threads(run, batches())
        for rows in tqdm(found, "channels", total, unit="batch", disable=not progress):
            for name, values in rows.items():
                sums[name].add(values, values[:, :0])
    finally:
        for handle in handles:
            handle.remove()
    return {name: part.finish().xx.cpu() for name, part in sums.items()}

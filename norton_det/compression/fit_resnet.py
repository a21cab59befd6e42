"""Fit a compressed ResNet to the dense one on a few hundred unlabelled images, in closed form, before any training.

The network is walked through once, layer by layer. Each layer of the compressed network is given what its own
predecessors really put out, and is fitted to what the *dense* network has at that place (asymmetric reconstruction,
as in He et al., "Channel Pruning", ICCV 2017, and Nagel et al., "Up or Down?", ICML 2020); so a later layer mends
what earlier ones lost. The parts are switches of ``Calibration``:

- ``batch_norm``: running statistics become those of the compressed network (precise BN);
- ``compensate``: 1x1 convolutions, the input factor A of CP layers and the classifier are solved by least squares, so
  the channels that are left take over what is predictable of those removed. The last convolution of a block is also
  given the error of the shortcut that it is added to;
- ``decomposition="output"``: the kernel factors B and C too, against the layer's output (``cp_output``).

A fourth part, the criterion ``css``, chooses the channels to keep (``criteria``).

Cost. Time: about three forward passes of the dense network over the images, and solves that do not depend on their
number. Memory: for N images of H x W about ``N*H*W*4*2.5*256/16`` bytes (1.3 GB for 512 of 128 x 128, 4 GB for 512 of
224 x 224) for the residual streams of both networks, and 0.5 GB for the covariances of a 3x3 with 512 inputs.

Legend: ``N`` images, ``rows`` sampled positions, ``C`` channels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..decomposition.moments import Moments
from ..models.fuse import folded_weight
from ..models.layers import CPConv2d
from ..models.resnet import NortonResNet, ResidualBlock
from ..utils.threads import on_threads
from .calibration import Calibration
from .fitter import fit_conv, fit_layer
from .sampling import patches, rows_of


@dataclass(frozen=True)
class Reader:
    """What else reads a stage's output, such as a lateral convolution of an FPN.

    Attributes:
        weight: (O, C), of the dense channels.
        biased: whether it has a bias, which can take a shift.
    """

    weight: Tensor
    biased: bool


class FittedReader(NamedTuple):
    """Of a ``Reader``: its ``weight`` (O, C') for the channels kept, and a ``shift`` (O,) of its bias; on the CPU."""

    weight: Tensor
    shift: Tensor


@torch.no_grad()
def calibrate(
    dense: NortonResNet,
    small: NortonResNet,
    kept: Mapping[str, Tensor],
    calibration: Calibration,
    readers: Mapping[int, Reader] | None = None,
    progress: bool = False,
) -> tuple[dict[str, float], dict[int, FittedReader]]:
    """Fit ``small`` in place.

    Args:
        dense: the network it was cut from, in eval mode; untouched.
        small: has the weights of ``prune.cut``.
        kept: the channels that were kept, by channel set.
        calibration: images and switches.
        readers: of the outputs of stages (1..4), to be fitted to what they give on the dense network.
        progress: show a bar.

    Returns:
        What is left of the error after each block: squared error of its output on the kept channels, relative to
        the dense output's energy. And the fitted readers by stage; none without ``compensate``.

    Raises:
        InputError: activations that are not finite; the layer is named.
    """
    walk = _Walk(dense, small, kept, calibration)
    errors, fitted = {}, {}
    readers = readers if readers and calibration.compensate else {}
    for stage, block in tqdm(list(small.spec.blocks()), desc="calibrate", unit="block", disable=not progress):
        errors[f"layer{stage}.{block}"] = walk.block(stage, block)
        if stage in readers and block == small.spec.depths[stage - 1] - 1:
            fitted[stage] = walk.reader(stage, readers[stage])
    if calibration.compensate and small.num_classes:
        walk.classifier()
    return errors, fitted


class _Walk:
    """State of the walk: the maps of both networks in front of the next block, one tensor per batch."""

    def __init__(
        self, dense: NortonResNet, small: NortonResNet, kept: Mapping[str, Tensor], calibration: Calibration
    ) -> None:
        self.dense, self.small = dense, small
        self.calibration, self.settings = calibration, calibration.fit_settings
        self.kept = {name: torch.as_tensor(index, device=calibration.device) for name, index in kept.items()}
        self.sites = {site.name: site for site in dense.spec.architecture.sites}
        self.stream = self.kept[self.sites["conv1"].writes]  # channels of the dense stream that the small one has
        self.draw = calibration.sampler()
        self.dense_maps = list(
            on_threads(lambda images: dense.maxpool(dense.bn1(dense.conv1(images)).relu_()), calibration.batches())
        )
        self.small_maps = [
            maps[:, self.stream].contiguous(memory_format=torch.channels_last) for maps in self.dense_maps
        ]

    def block(self, stage: int, index: int) -> float:
        name = f"layer{stage}.{index}"
        dense_block, small_block = self.dense.get_submodule(name), self.small.get_submodule(name)
        assert isinstance(dense_block, ResidualBlock) and isinstance(small_block, ResidualBlock)
        outputs = self.kept[f"layer{stage}"]
        positions, targets, shortcut, sums = self._dense_block(name, dense_block, outputs)
        shortcuts = self.small_maps
        if small_block.downsample is not None:
            conv, norm = small_block.downsample[0], small_block.downsample[1]
            assert dense_block.downsample is not None
            prior = folded_weight(dense_block.downsample[0], dense_block.downsample[1])[outputs][:, self.stream]
            self._fit(f"{name}.downsample", conv, norm, prior, self.small_maps, positions[-1], shortcut)
            shortcuts = list(on_threads(small_block.downsample, self.small_maps))
        # the last convolution is given the error of the shortcut that it is added to, too
        rest = [total - rows_of(maps, at) for total, maps, at in zip(sums, shortcuts, positions[-1], strict=True)]
        maps, inputs = self.small_maps, self.stream
        for place, (conv_name, conv, norm) in enumerate(small_block.layers()):
            last, kept = place == len(targets) - 1, self.kept[self.sites[f"{name}.{conv_name}"].writes]
            prior = folded_weight(*dense_block.layers()[place][1:])[kept][:, inputs]
            target = rest if last else targets[place]
            self._fit(f"{name}.{conv_name}", conv, norm, prior, maps, positions[place], target)
            run = nn.Sequential(conv, norm) if last else nn.Sequential(conv, norm, small_block.relu)
            maps, inputs = list(on_threads(run, maps)), kept
        pairs = zip(maps, shortcuts, strict=True)
        self.small_maps = list(on_threads(lambda pair: pair[0].add_(pair[1]).relu_(), pairs))
        self.stream = outputs
        error, energy = 0.0, 1e-20
        for batch, total, at in zip(self.small_maps, sums, positions[-1], strict=True):
            dense_output = total.relu()
            error += float((rows_of(batch, at) - dense_output).square().sum())
            energy += float(dense_output.square().sum())
        return error / energy

    def _dense_block(
        self, name: str, block: ResidualBlock, outputs: Tensor
    ) -> tuple[list[list[Tensor]], list[list[Tensor]], list[Tensor], list[Tensor]]:
        """Advance the dense maps over a block.

        Returns:
            By convolution and batch: positions in its outputs; its values there before the ReLU (rows, C), on the
            channels that are kept, of all but the last. By batch, at the last positions: of the shortcut; of the sum.
        """
        positions = [self._positions(maps, block) for maps in self.dense_maps]
        kept = [self.kept[self.sites[f"{name}.{conv}"].writes] for conv in block.names]

        def advance(batch: int) -> tuple[list[Tensor], Tensor, Tensor]:
            maps, at, rows = self.dense_maps[batch], positions[batch], []
            out = maps
            for place, (_, conv, norm) in enumerate(block.layers()):
                out = norm(conv(out.relu() if place else out))
                rows.append(rows_of(out, at[place])[:, kept[place]])
            shortcut = maps if block.downsample is None else block.downsample(maps)
            total = out + shortcut
            sampled = rows_of(shortcut, at[-1])[:, outputs], rows_of(total, at[-1])[:, outputs]
            self.dense_maps[batch] = total.relu_()
            return rows, *sampled

        rows, shortcuts, sums = map(list, zip(*on_threads(advance, range(len(self.dense_maps))), strict=True))
        places = [list(of_batches) for of_batches in zip(*positions, strict=True)]
        return places, [list(of_batches) for of_batches in zip(*rows, strict=True)], shortcuts, sums

    def _positions(self, maps: Tensor, block: ResidualBlock) -> list[Tensor]:
        """Positions in the outputs of a block's convolutions for a batch of maps; the same ones where the size is."""
        grids = [maps[:, :1]]
        for _, conv, _ in block.layers():
            assert isinstance(conv, CPConv2d | nn.Conv2d)
            grids.append(grids[-1][:, :, :: conv.stride[0], :: conv.stride[1]])
        drawn: dict[tuple[int, ...], Tensor] = {}
        for grid in reversed(grids[1:]):
            if tuple(grid.shape) not in drawn:
                drawn[tuple(grid.shape)] = self.draw(grid)
        return [drawn[tuple(grid.shape)] for grid in grids[1:]]

    def _fit(
        self,
        name: str,
        conv: nn.Module,
        norm: nn.Module,
        prior: Tensor,
        maps: list[Tensor],
        positions: list[Tensor],
        targets: list[Tensor],
    ) -> None:
        """Fit a convolution, CP or dense, and its normalisation to targets (rows, O) after normalisation."""
        assert isinstance(conv, CPConv2d | nn.Conv2d)
        if not (self.calibration.fits if isinstance(conv, CPConv2d) else self.calibration.compensate):
            _set_statistics(norm, list(on_threads(conv, maps)))
            return
        batches = zip(maps, positions, targets, strict=True)
        moments = Moments.of(name, ((patches(batch, conv, at), target) for batch, at, target in batches))
        fit_conv(conv, moments, prior, self.settings).write_norm(norm)

    def reader(self, stage: int, reader: Reader) -> FittedReader:
        """Fit what reads the maps of both networks as they are now, after that stage."""
        draw, dense = self.calibration.sampler(), reader.weight.float().to(self.calibration.device)

        def rows() -> Iterator[tuple[Tensor, Tensor]]:
            for dense_maps, small_maps in zip(self.dense_maps, self.small_maps, strict=True):
                at = draw(dense_maps)
                yield rows_of(small_maps, at), rows_of(dense_maps, at) @ dense.T

        moments = Moments.of(f"layer{stage}", rows())
        if not reader.biased:
            moments.uncentre()
        fit = fit_layer(moments, dense[:, self.stream], self.settings)
        return FittedReader(fit.weight.float().cpu(), fit.bias.float().cpu())

    def classifier(self) -> None:
        """Fit the classifier to the dense logits. Few rows and many features: the prior weighs more here."""
        dense = self.dense.fc
        rows = (
            (small_maps.mean((2, 3)), dense(dense_maps.mean((2, 3))))
            for dense_maps, small_maps in zip(self.dense_maps, self.small_maps, strict=True)
        )
        settings = replace(self.settings, ridge=10 * self.settings.ridge)
        fit_layer(Moments.of("fc", rows), dense.weight[:, self.stream], settings).write(self.small.fc)


def _set_statistics(norm: nn.Module, maps: list[Tensor]) -> None:
    """Running statistics of maps (N, O, H, W) in front of a normalisation: precise BN."""
    values = sum(batch.numel() // batch.shape[1] for batch in maps)
    mean = torch.stack([batch.sum((0, 2, 3), dtype=torch.double) for batch in maps]).sum(0) / values
    shift = mean.float().view(1, -1, 1, 1)
    squares = torch.stack([(batch - shift).square().sum((0, 2, 3), dtype=torch.double) for batch in maps]).sum(0)
    norm.running_mean.copy_(mean)  # type: ignore[operator]
    norm.running_var.copy_(squares / values)  # type: ignore[operator]

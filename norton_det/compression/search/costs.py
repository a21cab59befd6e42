"""What widths and ranks cost, layer by layer, without building the network.

An *assignment* gives every group its value. Groups are those of pruning and decomposition: ``conv1`` (the stem's
width), ``layer1`` to ``layer3`` (residual streams), ``layerS.B`` (inner width of a block), ``layerS.B.conv2`` (CP rank
of a 3x3 convolution), and the names of a detector's layers outside the ResNet (their ranks). A rank may be ``None``:
dense.

The figures are those of ``complexity``, where CP layers count in their train form; a test compares both.

Legend: ``I, O`` inputs and outputs, ``R`` rank, ``Kh, Kw`` kernel; a *map* is given by its rows and columns.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ...models.architecture import ARCHITECTURES, Site
from ...models.complexity import Complexity, count_complexity
from ...models.factorize import Candidate, Layout
from ...models.spec import CompressionSpec
from ...models.spec_from_state import shortest_ratio

Assignment = Mapping[str, int | None]


@dataclass(frozen=True)
class CostedLayer:
    """One layer whose cost depends on the assignment.

    Attributes:
        name: of the layer.
        inputs, outputs: a number of channels, or the group that sets it.
        rank: the group of its rank; ``None`` if it has none.
        kernel: (Kh, Kw).
        input_map, output_map: rows and columns of what it reads and of what it puts out.
        per_output: parameters beside the weight (normalisation, bias), for each output.
        linear: factors are those of a matrix, else of a convolution.
    """

    name: str
    inputs: int | str
    outputs: int | str
    rank: str | None = None
    kernel: tuple[int, int] = (1, 1)
    input_map: tuple[int, int] = (1, 1)
    output_map: tuple[int, int] = (1, 1)
    per_output: int = 0
    linear: bool = False

    @property
    def groups(self) -> list[str]:
        return [group for group in (self.inputs, self.outputs, self.rank) if isinstance(group, str)]

    def sizes(self, assignment: Assignment) -> tuple[int, int, int | None]:
        """I, O, R of a assignment."""
        inputs, outputs = (assignment[side] if isinstance(side, str) else side for side in (self.inputs, self.outputs))
        assert inputs is not None and outputs is not None
        return inputs, outputs, assignment[self.rank] if self.rank else None

    def macs(self, inputs: int, outputs: int, rank: int | None) -> int:
        (kh, kw), (rows, columns) = self.kernel, self.output_map
        if rank is None:
            return rows * columns * kh * kw * inputs * outputs
        if self.linear:
            return rows * columns * rank * (inputs + outputs)
        pointwise = self.input_map[0] * self.input_map[1] * inputs
        return outputs * rank * (pointwise + rows * self.input_map[1] * kh + rows * columns * kw)

    def params(self, inputs: int, outputs: int, rank: int | None) -> int:
        kh, kw = self.kernel
        beside = outputs * self.per_output
        if rank is None:
            return kh * kw * inputs * outputs + beside
        return rank * (inputs + outputs) + beside if self.linear else outputs * rank * (inputs + kh + kw) + beside


@dataclass(frozen=True)
class Network:
    """A dense network as the layers that assignments change, and its totals at ``input_size``."""

    arch: str
    layers: tuple[CostedLayer, ...]
    complexity: Complexity
    around: tuple[Candidate, ...] = ()

    def dense(self) -> dict[str, int | None]:
        """The assignment that changes nothing."""
        widths = {name: width for name, width in resnet_groups(self.arch).items() if width is not None}
        ranks = {layer.rank: None for layer in self.layers if layer.rank}
        return {group: widths.get(group) for group in widths | ranks}

    def to_spec(self, assignment: Assignment) -> tuple[CompressionSpec, Layout]:
        """The spec and the layout of a assignment."""
        full = resnet_groups(self.arch)
        widths = [(limit, assignment[name]) for name, limit in full.items() if limit is not None]
        ratios = [shortest_ratio(limit, width) for limit, width in widths if width is not None]
        ranks = [assignment[name] or 0 for name, limit in full.items() if limit is None]
        names = [candidate.name for candidate in self.around]
        layout = {name: rank for name in names if (rank := assignment.get(name)) is not None}
        return CompressionSpec(tuple(ratios), tuple(ranks), self.arch), layout


def resnet_groups(arch: str) -> dict[str, int | None]:
    """Every group of a ResNet with its dense width, ``None`` for ranks; widths in the order of a spec's ratios."""
    return {**ARCHITECTURES[arch].pruned, **dict.fromkeys(ARCHITECTURES[arch].factored)}


def describe_network(
    model: nn.Module,
    arch: str,
    input_size: tuple[int, int, int],
    *,
    stride_in_1x1: bool = False,
    around: Sequence[Candidate] = (),
    laterals: Mapping[str, tuple[int, int]] | None = None,
) -> Network:
    """The layers of a dense classifier or detector.

    Args:
        model: a network that ``count_complexity`` takes.
        arch: of its ResNet.
        input_size: (3, H, W).
        stride_in_1x1: where the ResNet strides.
        around: layers outside the ResNet that can be factored.
        laterals: the FPN's lateral convolutions by name: the stage (1..4) that each reads, and its outputs.
    """
    complexity = count_complexity(model, input_size)
    image = input_size[1:]
    if complexity.parts:  # a detector pads its image; all FPN detectors to 32, by the size of their last map
        image = (-(-image[0] // 32) * 32, -(-image[1] // 32) * 32)
    layers = list(_resnet(arch, image, stride_in_1x1, laterals or {}))
    rows = {row.name: row for row in complexity.rows}
    factorable = tuple(candidate for candidate in around if not candidate.reason and candidate.largest_rank >= 1)
    for candidate in factorable:
        weight, row = candidate.module.weight, rows[candidate.name]
        assert isinstance(weight, torch.Tensor)
        total = row.macs // weight.numel()  # positions of all levels or regions together
        height = max(1, round((total * image[0] / image[1]) ** 0.5))
        while total % height:
            height -= 1
        shape = (height, total // height)
        kernel = (weight.shape[2], weight.shape[3]) if weight.ndim == 4 else (1, 1)
        beside = (row.params - weight.numel()) // weight.shape[0]
        sizes = (weight.shape[1], weight.shape[0], candidate.name)
        layers.append(CostedLayer(candidate.name, *sizes, kernel, shape, shape, beside, linear=weight.ndim == 2))
    return Network(arch, tuple(layers), complexity, factorable)


def _resnet(
    arch: str, image: tuple[int, int], stride_in_1x1: bool, laterals: Mapping[str, tuple[int, int]]
) -> Iterable[CostedLayer]:
    """Convolutions of a ResNet with the normalisations after them, and what reads the stages' outputs."""
    dense = ARCHITECTURES[arch]
    half = _halved(image)

    def layer(site: Site, input_map: tuple[int, int], output_map: tuple[int, int]) -> CostedLayer:
        inputs, outputs = (dense.group(channels) or dense.widths[channels] for channels in (site.reads, site.writes))
        rank, kernel = (site.name if site.factored else None), (site.kernel, site.kernel)
        return CostedLayer(site.name, inputs, outputs, rank, kernel, input_map, output_map, 2)

    yield layer(dense.sites[0], image, half)
    current = _halved(half)
    for stage, block in dense.blocks():
        start = current
        for site in dense.sites_of(stage, block):
            if site.projection:
                yield layer(site, start, current)
                continue
            output_map = _halved(current) if site.name == dense.strided(stage, block, stride_in_1x1) else current
            yield layer(site, current, output_map)
            current = output_map
        if block == dense.depths[stage - 1] - 1:
            for lateral, (reads, width) in laterals.items():
                if reads == stage and stage < 4:
                    yield CostedLayer(lateral, dense.stream(stage), width, None, (1, 1), current, current)


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 2), -(-size[1] // 2)


class CostModel:
    """The cost of a whole network in one unit, for any assignment, and how it changes with one group.

    Args:
        network: its layers.
        unit: ``macs`` or ``params``.
        dense: cost of the whole dense network, where it is not one of these.
    """

    def __init__(self, network: Network, unit: str, dense: float | None = None) -> None:
        self.network, self.unit = network, unit
        self.readers: dict[str, list[CostedLayer]] = {}
        for layer in network.layers:
            for group in set(layer.groups):
                self.readers.setdefault(group, []).append(layer)
        self.dense = float(getattr(network.complexity, unit)) if dense is None else dense
        self.constant = self.dense - self.of(network.layers, network.dense())

    def layer(self, layer: CostedLayer, assignment: Assignment) -> float:
        """Cost of one layer."""
        sizes = layer.sizes(assignment)
        return layer.macs(*sizes) if self.unit == "macs" else layer.params(*sizes)

    def of(self, layers: Iterable[CostedLayer], assignment: Assignment) -> float:
        return sum(self.layer(layer, assignment) for layer in layers)

    def total(self, assignment: Assignment) -> float:
        """Cost of the whole."""
        return self.constant + self.of(self.network.layers, assignment)

    def change(self, assignment: Assignment, group: str, value: int | None) -> float:
        """What the cost of the whole changes by when one group gets another value."""
        layers = self.readers[group]
        return self.of(layers, {**assignment, group: value}) - self.of(layers, assignment)

"""What widths and ranks take in milliseconds on this machine, as a table of its layers predicts it.

Each kind of layer is timed alone in its deploy form with the ReLU after it: dense and, where it can be factored, with
rank 1 and 2, at its full and at half its widths. Between and beyond those points the time is taken to be linear in the
MACs, for higher ranks linear in the rank. A whole network is the dense one's measured time and the changes of its
layers; where the layers alone take longer than the whole, as on a busy machine, they are scaled to ``SHARE`` of it.
The prediction is rough; ``search`` measures the whole and corrects it.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ...models.layers import CPConv2d, LowRankLinear
from .costs import Assignment, CostedLayer, CostModel, Network
from .settings import Measure

HALF = 0.5
SHARE = 0.95  # of a network's time that its layers take at most
Kind = tuple[object, ...]


class LatencyModel(CostModel):
    """Predicted milliseconds of a network.

    Args:
        network: its layers.
        dense: measured milliseconds of the whole dense network.
        measure: what times the layers.
        rounds: of timing each layer.
        progress: show a bar.
    """

    def __init__(
        self, network: Network, dense: float, measure: Measure, rounds: int = 5, progress: bool = False
    ) -> None:
        self.lines: dict[tuple[Kind, int], tuple[float, float]] = {}
        self.shapes = _shapes(network)
        self._time_layers(network, measure, rounds, progress)
        super().__init__(network, "ms", dense)
        if self.constant < (1 - SHARE) * dense:
            factor = SHARE * dense / (dense - self.constant)
            self.lines = {key: (factor * offset, factor * slope) for key, (offset, slope) in self.lines.items()}
            super().__init__(network, "ms", dense)

    def layer(self, layer: CostedLayer, assignment: Assignment) -> float:
        sizes = layer.sizes(assignment)
        kind, rank = _kind(layer, self.shapes), sizes[2] or 0
        if layer.linear or rank <= 2:
            return self._line((kind, min(rank, 1) if layer.linear else rank), layer.macs(*sizes))
        one, two = (self._line((kind, r), layer.macs(sizes[0], sizes[1], r)) for r in (1, 2))
        return one + (rank - 1) * max(two - one, 0.05 * one)

    def _line(self, key: tuple[Kind, int], macs: float) -> float:
        offset, slope = self.lines[key]
        return offset + slope * macs

    def _time_layers(self, network: Network, measure: Measure, rounds: int, progress: bool) -> None:
        points: dict[tuple[Kind, int], list[tuple[str, float]]] = {}
        calls: dict[str, Callable[[], object]] = {}
        for layer in network.layers:
            kind = _kind(layer, self.shapes)
            if (kind, 0) in points:
                continue
            inputs, outputs = self.shapes[layer.name]
            for rank in (0, 1, 2) if layer.rank and not layer.linear else (0, 1) if layer.rank else (0,):
                for share in (1.0, HALF):
                    i, o = inputs, outputs
                    if not layer.linear:
                        i, o = (max(1, int(c * share)) if c > 3 else c for c in (inputs, outputs))
                    real = rank if not (rank and layer.linear) else max(1, int(128 * share))
                    name = f"{len(calls)}"
                    calls[name] = _call(layer, i, o, real or None)
                    points.setdefault((kind, rank), []).append((name, layer.macs(i, o, real or None)))
        timings = measure(calls, rounds=rounds, warmup=1, progress=progress)
        for key, pair in points.items():
            (full, m1), (half, m2) = ((1e3 * timings[name].median, macs) for name, macs in pair)
            slope = max(0.0, (full - half) / (m1 - m2)) if m1 != m2 else full / m1
            offset = full - slope * m1
            if offset < 0:
                slope, offset = full / m1, 0.0
            self.lines[key] = offset, slope


def _shapes(network: Network) -> dict[str, tuple[int, int]]:
    dense = network.dense()
    return {layer.name: layer.sizes(dense)[:2] for layer in network.layers}


def _kind(layer: CostedLayer, shapes: dict[str, tuple[int, int]]) -> Kind:
    """Layers of one kind take the same time."""
    shape = shapes[layer.name]
    return (*shape, layer.kernel, layer.input_map, layer.output_map, bool(layer.rank), layer.linear)


def _call(layer: CostedLayer, inputs: int, outputs: int, rank: int | None) -> Callable[[], object]:
    """One layer of a shape, in deploy form with the activation after it, on noise."""
    generator = torch.Generator().manual_seed(0)
    if layer.linear:
        rows = layer.output_map[0] * layer.output_map[1]
        matrix: nn.Module = (
            nn.Linear(inputs, outputs) if rank is None else LowRankLinear(inputs, outputs, min(rank, inputs, outputs))
        )
        x: Tensor = torch.randn(rows, inputs, generator=generator)
        return partial(nn.Sequential(matrix, nn.ReLU(inplace=True)).eval(), x)
    sides = zip(layer.input_map, layer.output_map, strict=True)
    vertical, horizontal = (max(1, round(before / after)) for before, after in sides)
    stride, padding = (vertical, horizontal), (layer.kernel[0] // 2, layer.kernel[1] // 2)
    conv: nn.Module = (
        nn.Conv2d(inputs, outputs, layer.kernel, stride, padding)
        if rank is None
        else CPConv2d(inputs, outputs, layer.kernel, rank, stride, padding).fuse()
    )
    x = torch.randn(1, inputs, *layer.input_map, generator=generator)
    return partial(nn.Sequential(conv, nn.ReLU(inplace=True)).eval(), x)

"""What ``compress_detector`` did: the ResNet's report, each factored layer around it, what stayed dense, the totals."""

from dataclasses import asdict, dataclass
from typing import Any

from .report import CompressionReport, costs


@dataclass(frozen=True)
class FactoredLayer:
    """One layer outside the ResNet that was factored.

    Attributes:
        name, part: as in ``factorize``.
        kind: CPConv2d or LowRankLinear.
        rank: CP rank, or rank of the matrix.
        nmse: relative squared error of the weight.
        params: (before, after).
        error: with calibration, what is left of the output's squared error, relative to its variance.
    """

    name: str
    part: str
    kind: str
    rank: int
    nmse: float
    params: tuple[int, int]
    error: float | None = None


@dataclass(frozen=True)
class DetectorReport:
    """What ``compress_detector`` did.

    Attributes:
        backbone: on the ResNet; ``None`` where it was left as it was.
        layers: factored layers around it.
        dense: layers of these parts that were left dense, and why.
        macs: (before, after) at ``input_size``, 1000 proposals, 100 detections.
        params: (before, after).
        input_size: (3, H, W).
        seconds: in all.
    """

    backbone: CompressionReport | None
    layers: tuple[FactoredLayer, ...]
    dense: dict[str, str]
    macs: tuple[int, int]
    params: tuple[int, int]
    input_size: tuple[int, int, int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"backbone": self.backbone.to_dict() if self.backbone else None}

    def table(self) -> str:
        """The ResNet's table, then one line per layer around it, then the totals."""
        lines = [self.backbone.table(), ""] if self.backbone else []
        width = max([len(layer.name) for layer in self.layers] + [len(name) for name in self.dense] + [10])
        lines.append(f"{'layer':{width}} {'part':5} {'kind':14} {'rank':>5} {'NMSE':>7} {'error':>7} {'params M':>16}")
        for layer in self.layers:
            before, after = (count / 1e6 for count in layer.params)
            lines.append(
                f"{layer.name:{width}} {layer.part:5} {layer.kind:14} {layer.rank:5d} {layer.nmse:7.4f} "
                f"{'-' if layer.error is None else f'{layer.error:.4f}':>7} "
                f"{before:7.3f} -> {after:.3f}"
            )
        lines += [f"{name:{width}} left dense: {reason}" for name, reason in self.dense.items()]
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """One line: MACs and parameters of the whole detector before and after."""
        return f"detector: {costs(self.macs, self.params, self.input_size)}; {self.seconds:.1f} s"

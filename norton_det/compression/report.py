"""What a compression did: per layer and in all, for people and for programs."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ..decomposition.cp import Factors, nmse
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec


@dataclass(frozen=True)
class LayerReport:
    """One decomposed or pruned convolution.

    Attributes:
        name: torchvision's name of the layer.
        rank: CP rank, ``None`` where it stays dense.
        nmse: relative squared error of the decomposition, before pruning.
        filters, kept: outputs before and after pruning.
    """

    name: str
    rank: int | None
    nmse: float
    filters: int
    kept: int


@dataclass(frozen=True)
class CompressionReport:
    """What ``compress`` did.

    Attributes:
        spec, criterion: as given.
        layers: every convolution in the order of the network.
        kept: sorted indices of the channels left, by the layer or residual stream that writes them
            (``conv1``, ``layer1``, ``layer1.0.conv1``, ``layer1.0.conv2``, ...).
        macs, params: (before, after); conv + linear multiply-adds at ``input_size``.
        input_size: (3, H, W).
        seconds: by step.
        errors: with calibration, what is left of each block's output error, relative (see ``calibration.calibrate``).
    """

    spec: CompressionSpec
    criterion: str
    layers: tuple[LayerReport, ...]
    kept: dict[str, tuple[int, ...]]
    macs: tuple[int, int]
    params: tuple[int, int]
    input_size: tuple[int, int, int]
    seconds: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        return fields | {"spec": self.spec.to_dict(), "kept": {name: list(index) for name, index in self.kept.items()}}

    def table(self) -> str:
        """One line per convolution, then the totals."""
        lines = [f"{'layer':22} {'rank':>5} {'NMSE':>7} {'filters':>8} {'kept':>6}"]
        for layer in self.layers:
            rank, error = ("-", "-") if layer.rank is None else (str(layer.rank), f"{layer.nmse:.4f}")
            lines.append(f"{layer.name:22} {rank:>5} {error:>7} {layer.filters:8d} {layer.kept:6d}")
        lines.append(self.summary())
        return "\n".join(lines)

    def summary(self) -> str:
        """Two lines: MACs and parameters before and after, seconds."""
        steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return (
            f"{self.spec.name or self.spec.arch}: {costs(self.macs, self.params, self.input_size)}\n"
            f"criterion {self.criterion}; {steps}"
        )


def costs(macs: tuple[int, int], params: tuple[int, int], input_size: tuple[int, int, int]) -> str:
    """MACs and parameters before and after, in words."""
    saved = [f"{100 * (after / before - 1):+.1f} %" for before, after in (macs, params)]
    return (
        f"MACs {macs[0] / 1e9:.2f} -> {macs[1] / 1e9:.2f} G ({saved[0]}, conv + linear, "
        f"{'x'.join(map(str, input_size))}), params {params[0] / 1e6:.2f} -> {params[1] / 1e6:.2f} M ({saved[1]})"
    )


def layer_reports(
    state: Mapping[str, Tensor], factors: Mapping[str, Factors], small: NortonResNet
) -> Iterator[LayerReport]:
    for name, module in small.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None or weight.ndim != 4:
            continue
        part = factors.get(name)
        error = nmse(weight, part) if part is not None else 0.0
        kept = module.out_channels
        assert isinstance(kept, int)
        yield LayerReport(name, part.rank if part is not None else None, error, len(weight), kept)

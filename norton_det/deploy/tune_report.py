"""What ``tune`` measured and chose, for people and for programs."""

from dataclasses import asdict, dataclass
from typing import Any

Call = tuple[tuple[int, ...], bool, int]  # input shape, whether channels last, how often in one run of the model


@dataclass(frozen=True)
class LayerTiming:
    """One factored layer.

    Attributes:
        name: in the model.
        kind: the layer in words, ``CPConv2d 64 -> 64, 3x3, stride 2, rank 1``.
        calls: its inputs in one run of the model.
        ms: milliseconds of each variant, summed over the calls; empty for a layer that was not called.
        choice: the variant that was put in place.
    """

    name: str
    kind: str
    calls: tuple[Call, ...]
    ms: dict[str, float]
    choice: str


@dataclass(frozen=True)
class TuneReport:
    """What ``tune`` measured and chose. Times are those of the fastest call, in milliseconds.

    Attributes:
        layers: every factored layer, in the order of the model.
        whole: of whole models: ``given``, ``fused``, ``tuned`` and, with a baseline, ``baseline`` and
            ``baseline, fused``; ``..., channels last`` the same in that memory format.
        medians: the same, medians.
        result: which of them the new model is.
        margin: share below which a difference counts as noise.
        channels_last: whether the new model's weights are in that format.
        environment: device, threads, dtype, PyTorch.
        seconds: that tuning took.
    """

    layers: tuple[LayerTiming, ...]
    whole: dict[str, float]
    medians: dict[str, float]
    result: str
    margin: float
    channels_last: bool
    environment: str
    seconds: float

    @property
    def sums(self) -> dict[str, float]:
        """Milliseconds of all layers together: in each variant (the first, where a layer lacks it), as chosen."""
        called = [layer for layer in self.layers if layer.ms]
        sums = {
            variant: sum(layer.ms.get(variant, next(iter(layer.ms.values()))) for layer in called)
            for variant in self.variants
        }
        return sums | {"chosen": sum(layer.ms[layer.choice] for layer in called)}

    @property
    def variants(self) -> list[str]:
        """Names of the variants that were measured."""
        return list(dict.fromkeys(variant for layer in self.layers for variant in layer.ms))

    @property
    def choices(self) -> dict[str, str]:
        """The variant in place, by layer name."""
        return {layer.name: layer.choice for layer in self.layers}

    @property
    def slower(self) -> dict[str, float]:
        """What the new model was measured slower than by more than the margin, and how many times; empty: nothing."""
        if not self.whole:
            return {}
        ratios = {name: self.whole[self.result] / ms for name, ms in self.whole.items()}
        return {name: ratio for name, ratio in ratios.items() if ratio * (1 - self.margin) > 1}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sums": self.sums, "slower": self.slower}

    def table(self) -> str:
        """One line per layer with the time of each variant, sums, then whole models, then what came out slower."""
        if not self.layers and not self.whole:
            return "tune: no factored layers; batch normalisations folded, nothing to choose"
        variants, sums = self.variants, self.sums
        names = max([len(layer.name) for layer in self.layers] + [10])  # width of the column
        kinds = max([len(layer.kind) for layer in self.layers] + [5])
        heads = " ".join(f"{variant:>9}" for variant in variants)
        lines = [f"{'layer':{names}} {'kind':{kinds}} {'calls':>5} {heads}  choice (ms)"]
        for layer in self.layers:
            times = " ".join(f"{layer.ms[name]:9.3f}" if name in layer.ms else f"{'-':>9}" for name in variants)
            count = sum(count for _, _, count in layer.calls)
            lines.append(f"{layer.name:{names}} {layer.kind:{kinds}} {count:5d} {times}  {layer.choice}")
        times = " ".join(f"{sums[variant]:9.3f}" for variant in variants)
        lines += [f"{'sum':{names}} {'':{kinds}} {'':5} {times}  {sums['chosen']:.3f} as chosen", ""]
        lines.append(f"{'whole model':30} {'ms':>9} {'median':>9} {'ratio':>7}")
        for name, ms in self.whole.items():
            mark = "  <- the new model" if name == self.result else ""
            ratio = ms / self.whole[self.result]
            lines.append(f"{name:30} {ms:9.2f} {self.medians[name]:9.2f} {ratio:6.2f}x{mark}")
        lines += [f"slower than {name}: {ratio:.3f} times its time" for name, ratio in self.slower.items()]
        memory = "channels last" if self.channels_last else "memory format as given"
        lines.append(f"fastest of interleaved calls; {memory}; {self.environment}; {self.seconds:.0f} s")
        return "\n".join(lines)

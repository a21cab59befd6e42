"""Never slower: the variant of every factored layer is chosen by its measured time on the target.

MACs do not say what is fast: a factored convolution of few channels, of a higher rank or with a stride can take
longer than the dense one it replaced. All variants of a layer (see ``layer_variants``) are the same linear map, so the
choice costs nothing but the measurement. The memory format is chosen in the same way: PyTorch's depthwise convolutions
on the CPU are up to three times faster in channels-last format.

Times are those of the fastest call: other work on the machine only ever adds to a time (J. Chen, J. Revels, "Robust
benchmarking in noisy environments", IEEE HPEC 2016), and variants take turns, so that they meet the same noise.
"""

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..models.factorize import replace_module
from ..models.fuse import fold_batch_norms, fuse
from ..models.layers import CPConv2d, Factored, LowRankLinear
from ..utils.errors import InputError, first_line
from ..utils.hooks import hooked
from ..utils.timing import Timing, environment, measure
from .layer_variants import make_variant, variant_names
from .tune_report import LayerTiming, TuneReport

Input = tuple[tuple[int, ...], torch.dtype, bool]  # shape, dtype, whether channels last
Kind = tuple[object, ...]  # layers of one kind take the same time; first what it is in words

MIN_CALLS = 5  # measured calls of each candidate, however long they take
LAYER_SECONDS = 1.0  # about as long as the variants of one layer are measured on one input
WHOLE_SECONDS = 20.0  # the same for whole models
TUNED_CHANNELS_LAST = "tuned, channels last"


@dataclass(frozen=True)
class TuneResult:
    """The new model (``model``, in eval mode, for inference) and the ``report``."""

    model: nn.Module
    report: TuneReport


def tune(
    model: nn.Module,
    example: Any,
    *,
    baseline: nn.Module | None = None,
    memory_format: Literal["auto", "keep", "channels_last"] = "auto",
    margin: float = 0.03,
    rounds: int = 30,
    progress: bool = False,
) -> TuneResult:
    """The fastest deploy form of a model with factored layers, a new model: outputs equal to 1e-5; input untouched.

    Runs the model on the example, measures every variant of each layer on the inputs it met, summed over its calls,
    and puts the fastest in place; folds batch normalisations as ``fuse`` does. The whole is then measured beside
    ``fuse(model)``, which is the result where it is faster by the margin. Tune where the model will run: the choice
    holds for this machine, number of threads, dtype and example size.

    Args:
        model: any in eval mode with ``CPConv2d`` or ``LowRankLinear`` layers: a classifier, an R-CNN of either stack,
            a ``DetectorGraph``. Without such layers the result is ``fuse(model)`` and an empty report.
        example: what the model takes, ``model(example)``, of the size and on the device that it will have.
        baseline: the dense model, to be measured beside it; the report says if the new one is slower.
        memory_format: of the weights; ``auto`` tunes as given and for channels last, and takes the faster.
        margin: share by which a variant has to be faster than the fused one to take its place, against noise.
        rounds: measured calls of each variant at most; fewer where they take long, but not below 5 (or ``rounds``).
        progress: show bars.

    Raises:
        InputError: a model in training mode, an example that a model does not take, an option out of range.
    """
    started = time.perf_counter()
    _check(model, baseline, memory_format, margin, rounds)
    _run(model, example, "the model")
    if baseline is not None:
        _run(baseline, example, "the baseline")
    first = next(model.parameters(), torch.empty(0))
    where = environment(first.device, first.dtype)
    folded = fold_batch_norms(copy.deepcopy(model)).eval()
    if not any(isinstance(module, Factored) for module in folded.modules()):
        seconds = time.perf_counter() - started
        return TuneResult(fuse(model), TuneReport((), {}, {}, "fused", margin, False, where, seconds))

    formats = {"tuned": _is_channels_last(model) or memory_format == "channels_last"}
    if memory_format == "auto" and not formats["tuned"] and _runs_channels_last(folded, example):
        formats[TUNED_CHANNELS_LAST] = True
    whole: dict[str, nn.Module] = {"given": model, "fused": _formatted(fuse(model), formats["tuned"])}
    layers = {}
    for name, channels_last in formats.items():
        folded = _formatted(folded, channels_last)
        layers[name] = _choose(folded, example, channels_last, margin, rounds, progress)
        choices = {layer.name: layer.choice for layer in layers[name]}
        whole[name] = _with_variants(copy.deepcopy(folded), choices, channels_last)
    if baseline is not None:
        whole |= {"baseline": baseline, "baseline, fused": fuse(baseline)}
        if TUNED_CHANNELS_LAST in formats:
            whole["baseline, fused, channels last"] = _formatted(fuse(baseline), True)
    calls = {name: partial(candidate, example) for name, candidate in whole.items()}
    timings = _time(calls, first, rounds, WHOLE_SECONDS, progress)
    fastest = {name: 1e3 * min(timing.seconds) for name, timing in timings.items()}
    medians = {name: 1e3 * timing.median for name, timing in timings.items()}
    result = _fastest({name: fastest[name] for name in (*formats, "fused")}, margin)
    chosen = layers.get(result) or tuple(
        replace(layer, choice=next(iter(layer.ms), layer.choice)) for layer in layers["tuned"]
    )
    new, seconds = whole[result], time.perf_counter() - started
    channels_last = formats.get(result, formats["tuned"])
    return TuneResult(new, TuneReport(chosen, fastest, medians, result, margin, channels_last, where, seconds))


def _check(model: nn.Module, baseline: nn.Module | None, memory_format: str, margin: float, rounds: int) -> None:
    for name, candidate in (("model", model), ("baseline", baseline)):
        if candidate is not None and candidate.training:
            raise InputError(f"tune: expected a {name} in eval mode, got training mode; call {name}.eval() first")
    if memory_format not in ("auto", "keep", "channels_last"):
        raise InputError(f"memory_format: expected auto, keep or channels_last, got {memory_format!r}; use one of them")
    if not 0 <= margin < 1:
        raise InputError(f"margin: expected 0 or more and less than 1, got {margin}; 0.03 is three percent")
    if rounds < 1:
        raise InputError(f"rounds: expected 1 or more, got {rounds}; 30 are the default")


def _run(model: nn.Module, example: Any, name: str) -> None:
    try:
        with torch.inference_mode():
            model(example)
    except Exception as error:  # whatever a model raises for what it does not take
        got = f"{tuple(example.shape)} {example.dtype}" if isinstance(example, Tensor) else type(example).__name__
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"example: expected what {name} takes, got {got} ({reason}); give one of its inputs"
        ) from error


def _runs_channels_last(model: nn.Module, example: Any) -> bool:
    """Whether a model takes the format: one that views its maps may not."""
    try:
        with torch.inference_mode():
            copy.deepcopy(model).to(memory_format=torch.channels_last)(example)
    except RuntimeError:
        return False
    return True


def _choose(
    model: nn.Module, example: Any, channels_last: bool, margin: float, rounds: int, progress: bool
) -> tuple[LayerTiming, ...]:
    """Time the variants of every factored layer on the inputs that it meets in one run of the model."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Factored)}
    inputs = _record(model, layers, example)
    jobs: dict[tuple[Kind, Input], Factored] = {}
    for name, layer in layers.items():
        for met in inputs[name]:
            jobs.setdefault((_kind(layer), met), layer)
    ms: dict[tuple[Kind, Input], dict[str, float]] = {}
    for (kind, met), layer in tqdm(jobs.items(), desc="layers", unit="", disable=not progress):
        shape, dtype, input_channels_last = met
        x = torch.randn(shape, device=next(layer.parameters()).device).to(dtype)
        x = x.to(memory_format=torch.channels_last) if input_channels_last else x
        variants = {name: _formatted(make_variant(layer, name), channels_last) for name in variant_names(layer)}
        timings = _time({name: partial(variant, x) for name, variant in variants.items()}, x, rounds, LAYER_SECONDS)
        ms[kind, met] = {name: 1e3 * min(timing.seconds) for name, timing in timings.items()}
    chosen = []
    for name, layer in layers.items():
        counts, kind = inputs[name], _kind(layer)
        sums = {
            variant: sum(count * ms[kind, met][variant] for met, count in counts.items())
            for variant in variant_names(layer)
        }
        calls = tuple((shape, input_channels_last, count) for (shape, _, input_channels_last), count in counts.items())
        chosen.append(LayerTiming(name, str(kind[0]), calls, sums if counts else {}, _fastest(sums, margin)))
    return tuple(chosen)


def _record(model: nn.Module, layers: Mapping[str, nn.Module], example: Any) -> dict[str, Counter[Input]]:
    """The inputs of each layer in one run: how often which."""
    inputs: dict[str, Counter[Input]] = {name: Counter() for name in layers}

    def hook(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        if x.numel():  # a head without regions costs nothing
            inputs[name][tuple(x.shape), x.dtype, _is_channels_last_tensor(x)] += 1

    with hooked(inputs=[(layer, partial(hook, name)) for name, layer in layers.items()]), torch.inference_mode():
        model(example)
    return inputs


def _time(
    calls: Mapping[str, Callable[[], object]], on: Tensor, rounds: int, seconds: float, progress: bool = False
) -> dict[str, Timing]:
    """Interleaved timings on the device of a tensor, for about so many seconds in all."""
    once = sum(timing.median for timing in measure(calls, rounds=1, warmup=1, device=on.device).values())
    count = max(min(MIN_CALLS, rounds), min(rounds, int(seconds / once)))
    return measure(calls, rounds=count, warmup=0, device=on.device, progress=progress)


def _fastest(ms: Mapping[str, float], margin: float) -> str:
    """The fastest variant, or the first one where that is hardly slower."""
    first, best = next(iter(ms)), min(ms, key=ms.__getitem__)
    return best if ms[best] < (1 - margin) * ms[first] else first


def _with_variants(model: nn.Module, choices: Mapping[str, str], channels_last: bool) -> nn.Module:
    """Put the chosen variants in place; a layer that is used in several places stays one."""
    names = list(model.named_modules(remove_duplicate=False))
    variants = {id(layer): make_variant(layer, choices[name]) for name, layer in names if name in choices}
    for name, layer in names:
        if id(layer) in variants and name:
            replace_module(model, name, variants[id(layer)])
    return _formatted(variants.get(id(model), model), channels_last)


def _kind(layer: Factored) -> Kind:
    """A layer in words, then what else its time depends on."""
    if isinstance(layer, LowRankLinear):
        words = f"LowRankLinear {layer.in_features} -> {layer.out_features}, rank {layer.rank}"
        return words, layer.second.bias is not None, layer.first.weight.dtype
    assert isinstance(layer, CPConv2d)
    kernel, stride = "x".join(map(str, layer.kernel_size)), max(layer.stride)
    words = f"CPConv2d {layer.in_channels} -> {layer.out_channels}, {kernel}, stride {stride}, rank {layer.rank}"
    return words, layer.stride, layer.padding, layer.bias is not None, layer.pointwise.weight.dtype


def _formatted(model: nn.Module, channels_last: bool) -> nn.Module:
    return model.to(memory_format=torch.channels_last) if channels_last else model


def _is_channels_last(model: nn.Module) -> bool:
    return any(_is_channels_last_tensor(weight) for weight in model.parameters())


def _is_channels_last_tensor(x: Tensor) -> bool:
    """Whether a tensor (N, C, H, W) is in channels-last format; one of 1x1 is in both, but for its strides."""
    return x.ndim == 4 and x.shape[1] > 1 and x.stride()[1] == 1 and x.stride()[3] == x.shape[1]

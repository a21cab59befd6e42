"""The work of ``norton-det benchmark-compression``; ``options/benchmark_compression.py`` says what it is."""

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.linalg import subspace_angles
from tensorly.decomposition import parafac
from torch import Tensor
from tqdm import tqdm

from ..checkpoint.opened import open_weights
from ..compression.criteria import elimination_order
from ..decomposition.angles import pabs_distance
from ..decomposition.cp import Factors, cp_decompose_layers, nmse
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..utils.errors import InputError
from ..utils.files import write_text
from ..utils.timing import environment

Result = TypeVar("Result")
NAME = re.compile(r"layer\d+\.\d+\.conv[12]\.weight")
STARTS = (("svd", None), ("random", 0), ("random", 1))  # the first, parafac's default, is the one that is timed


def read_layers(path: str | None, seed: int) -> dict[str, Tensor]:
    """The 3x3 weights (O, I, 3, 3) by layer name, float32."""
    if path is None:
        torch.manual_seed(seed)
        state = NortonResNet(CompressionSpec.dense()).state_dict()
    else:
        opened = open_weights(path)
        named = any(NAME.fullmatch(name) for name in opened.state)  # a part of the layers will do
        state = opened.state if named else opened.resnet.state
    layers = {name.removesuffix(".weight"): w.float() for name, w in state.items() if NAME.fullmatch(name)}
    layers = {name: weight for name, weight in layers.items() if weight.ndim == 4 and weight.shape[2:] == (3, 3)}
    if not layers:
        raise InputError(f"{path}: expected 3x3 weights layer1.0.conv2.weight ..., found none; use a dense ResNet's")
    return layers


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that a function takes, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compress(weights: list[Tensor], rank: int) -> tuple[float, float, list[Factors]]:
    """Decompose all layers and order their filters.

    Returns:
        Seconds of the decompositions, seconds of the distances and orders, and the factors of every layer.
    """
    cp_seconds, factors = timed(lambda: cp_decompose_layers(weights, [rank] * len(weights)))
    seconds, _ = timed(lambda: [elimination_order(pabs_distance(layer)) for layer in factors])
    return cp_seconds, seconds, factors


def loop_cp(weight: Tensor, rank: int, sample: list[int]) -> tuple[float, float]:
    """Decompose the sampled filters one by one with TensorLy.

    Returns:
        Seconds of one parafac call, for one filter, and the NMSE of the best of three starts over the sample.
    """
    seconds, squared_error, energy = 0.0, 0.0, 0.0
    for tensor in weight[sample].double().numpy():
        errors = []
        for number, (init, seed) in enumerate(STARTS):
            spent, cp = timed(partial(parafac, tensor, rank, init=init, random_state=seed))
            seconds += spent if number == 0 else 0.0
            scaled = [cp.factors[0] * cp.weights, *cp.factors[1:]]
            errors.append(float(((tensor - np.einsum("ir,hr,wr->ihw", *scaled)) ** 2).sum()))
        squared_error += min(errors)
        energy += float((tensor**2).sum())
    return seconds / len(sample), squared_error / energy


def loop_pabs(factors: Factors, pairs: list[tuple[int, int]]) -> tuple[float, float]:
    """Compare the sampled pairs one by one with SciPy.

    Returns:
        Seconds of the three subspace_angles calls of a pair, and the largest difference from our distances (radians).
    """
    modes = [factor.double().numpy() for factor in (factors.a, factors.b, factors.c)]
    seconds, loop = timed(lambda: [sum(subspace_angles(m[i], m[j]).max() for m in modes) for i, j in pairs])
    ours = pabs_distance(factors)
    return seconds / len(pairs), max(abs(d - float(ours[i, j])) for d, (i, j) in zip(loop, pairs, strict=True))


def measure_layer(
    name: str, weight: Tensor, factors: Factors, args: argparse.Namespace, chooser: random.Random
) -> dict[str, Any]:
    """One row: both loops on a sample of the layer, and our error on the same filters."""
    alive = [o for o in range(len(weight)) if weight[o].abs().max() > 0]  # parafac divides by the norm
    if len(alive) < 2:
        raise InputError(
            f"{name}: expected at least two filters that are not zero, got {len(alive)}; use other weights"
        )
    sample = sorted(chooser.sample(alive, min(args.filters, len(alive))))
    pairs = [(one, other) for one, other in (chooser.sample(alive, 2) for _ in range(args.pairs))]
    filter_seconds, loop_nmse = loop_cp(weight, args.rank, sample)
    pair_seconds, difference = loop_pabs(factors, pairs)
    count = len(weight)
    return {
        "layer": name,
        "filters": count,
        "inputs": weight.shape[1],
        "pairs": count * (count - 1) // 2,
        "sampled_filters": len(sample),
        "sampled_pairs": len(pairs),
        "tensorly_seconds": filter_seconds * count,
        "scipy_seconds": pair_seconds * count * (count - 1) / 2,
        "nmse": nmse(weight[sample], factors.filters(torch.tensor(sample)).to(torch.float64)),
        "tensorly_nmse": loop_nmse,
        "angle_difference": difference,
    }


def table(report: dict[str, Any]) -> str:
    """The rows and the totals as text."""
    head = f"{'layer':<16}{'O x I':>11}{'pairs':>8}{'NMSE ours':>11}{'TensorLy':>10}{'parafac s':>11}{'angles s':>10}"
    lines = [report["environment"], f"weights {report['weights']}, rank {report['rank']}; loops extrapolated", "", head]
    for row in report["layers"]:
        size = f"{row['filters']} x {row['inputs']}"
        lines.append(
            f"{row['layer']:<16}{size:>11}{row['pairs']:>8}{row['nmse']:>11.6f}{row['tensorly_nmse']:>10.6f}"
            f"{row['tensorly_seconds']:>11.2f}{row['scipy_seconds']:>10.2f}"
        )
    higher = [row["layer"] for row in report["layers"] if row["nmse"] > row["tensorly_nmse"] + 1e-6]
    sample = report["layers"][0]
    return "\n".join(
        [
            *lines,
            "",
            f"{'seconds':<10}{'CP':>10}{'PABS':>10}{'total':>10}",
            *(
                f"{label:<10}" + "".join(f"{report[key][step]:>10.2f}" for step in ("cp", "pabs", "total"))
                for label, key in (("ours", "seconds"), ("loops", "loop_seconds"))
            ),
            f"speed-up {report['speedup']:.0f}x (loops from {sample['sampled_filters']} filters and "
            f"{sample['sampled_pairs']} pairs a layer)",
            f"NMSE higher than TensorLy's best of {len(STARTS)} (by more than 1e-6): {', '.join(higher) or 'no layer'}",
            f"largest difference of a PABS distance from SciPy: "
            f"{max(row['angle_difference'] for row in report['layers']):.1e} rad",
        ]
    )


def main(args: argparse.Namespace) -> None:
    for field, least in (("filters", 1), ("pairs", 1), ("rounds", 1), ("layers", 1), ("threads", 1)):
        if getattr(args, field) is not None and getattr(args, field) < least:
            raise InputError(f"--{field}: expected {least} or more, got {getattr(args, field)}; raise it")
    if args.threads:
        torch.set_num_threads(args.threads)
    layers = dict(list(read_layers(args.weights, args.seed).items())[: args.layers])
    weights = list(layers.values())
    compress([weights[0][:2]], args.rank)  # libraries load on first use
    runs = [compress(weights, args.rank) for _ in tqdm(range(args.rounds), "ours", leave=False)]
    cp_seconds, pabs_seconds = statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)
    chooser, rows = random.Random(args.seed), []
    for (name, weight), factors in tqdm(list(zip(layers.items(), runs[0][2], strict=True)), "loops", leave=False):
        rows.append(measure_layer(name, weight, factors, args, chooser))
    ours, cp_loop = cp_seconds + pabs_seconds, sum(row["tensorly_seconds"] for row in rows)
    pabs_loop = sum(row["scipy_seconds"] for row in rows)
    report = {
        "environment": environment(dtype=torch.float64),
        "weights": args.weights or f"random, seed {args.seed}",
        "rank": args.rank,
        "seconds": {"cp": cp_seconds, "pabs": pabs_seconds, "total": ours},
        "loop_seconds": {"cp": cp_loop, "pabs": pabs_loop, "total": cp_loop + pabs_loop},
        "speedup": (cp_loop + pabs_loop) / ours,
        "layers": rows,
    }
    if args.json:
        write_text(args.json, json.dumps(report, indent=2) + "\n")
    print(table(report))

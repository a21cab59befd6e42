"""The work of ``norton-det complexity``; ``options/analyze_complexity.py`` says what it is."""

import argparse
import json
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from .. import tv
from ..checkpoint.load import load_resnet
from ..checkpoint.opened import reading_once
from ..checkpoint.zoo_table import DETECTIONS, ENTRIES, NETWORKS
from ..models.complexity import count_complexity
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..models.stacks import is_detector
from ..utils.errors import InputError
from ..utils.options import DETECTORS

BUILDERS = dict(
    zip(
        DETECTORS,
        (tv.fasterrcnn_norton_resnet50_fpn, tv.maskrcnn_norton_resnet50_fpn, tv.keypointrcnn_norton_resnet50_fpn),
        strict=True,
    )
)
KINDS = dict(zip(("classifier", *DETECTORS), NETWORKS, strict=True))  # -> network of the zoo
# kind -> preset -> (G MACs, M params) of the paper
PUBLISHED = {
    kind: {
        entry.level: (entry.published_macs, entry.published_params)
        for entry in ENTRIES
        if entry.network == network and entry.published_macs is not None and entry.published_params is not None
    }
    for kind, network in KINDS.items()
}
# The published figures hold no mask head, and of the keypoint head as much as one detection costs.
PUBLISHED_DETECTIONS = {kind: DETECTIONS[network] for kind, network in KINDS.items()}
NOTES = """MACs: multiply-adds of convolutions and linear layers, at 224 x 224, detectors 800 x 800 with 1000 proposals.
Mask and keypoint heads are compared with 0 and 1 detections, as published; "head" and "all" are with {detections}.
Some published rows count more: with normalisation (2 per element), activations, pooling and biases norton-78 has
923,650,408 MACs (the release's own figure), Faster R-CNN 134.85 G dense and 93.40 G with norton-78; with normalisation
norton-64 has 1.49 G. The ratios of the published norton-43 and -50 are unknown: the presets' were found by search."""
COLUMNS = ("network", "MACs G", "published", "diff %", "params M", "published", "diff %", "head G", "all G")


def build(spec: CompressionSpec, kind: str) -> nn.Module:
    """A classifier or detector whose tensors hold no values."""
    with torch.device("meta"):
        return NortonResNet(spec) if kind == "classifier" else BUILDERS[kind](spec=spec)


@reading_once()
def requested_network(args: argparse.Namespace) -> nn.Module:
    """The network that the arguments name."""
    if args.weights and tv.is_detector_file(args.weights):
        info = tv.read_detector_info(args.weights)
        if args.detector not in (None, info.kind):
            raise InputError(
                f"--detector: expected {info.kind}, that of {args.weights}, got {args.detector}; leave it out"
            )
        return BUILDERS[info.kind](weights=args.weights)
    if args.weights and args.detector:
        return BUILDERS[args.detector](weights_backbone=args.weights)
    if args.weights:
        return load_resnet(args.weights)
    arch = args.arch or "resnet50"
    if args.rank or args.ratios:
        spec = CompressionSpec.parse(args.rank or 1, args.ratios, arch)
    else:
        spec = CompressionSpec.preset(args.preset, arch)
    return build(spec, args.detector or "classifier")


def compare(kind: str, name: str, detections: int) -> dict[str, Any]:
    """One row of the paper beside ours; MACs and parameters as plain numbers, differences in percent."""
    model = build(CompressionSpec.preset(name), kind)
    size = (3, 224, 224) if kind == "classifier" else (3, 800, 800)
    full = count_complexity(model, size, detections=detections)
    heads = sum(full.parts.get(f"{head}_head", 0) for head in ("mask", "keypoint"))
    compared = full.macs - heads  # without detections
    if PUBLISHED_DETECTIONS[kind]:
        compared = count_complexity(model, size, detections=PUBLISHED_DETECTIONS[kind]).macs
    macs, params = (value * scale for value, scale in zip(PUBLISHED[kind][name], (1e9, 1e6), strict=True))
    return {
        "network": kind,
        "preset": name,
        "macs": compared,
        "published_macs": round(macs),
        "macs_difference_percent": 100 * (compared / macs - 1),
        "params": full.params,
        "published_params": round(params),
        "params_difference_percent": 100 * (full.params / params - 1),
        "detections_compared": PUBLISHED_DETECTIONS[kind],
        "head_macs": heads,
        "macs_with_heads": full.macs,
    }


def published_tables(args: argparse.Namespace) -> str:
    """Both tables of the paper beside this package's count, as the arguments want them printed."""
    pairs = [(kind, name) for kind, presets in PUBLISHED.items() for name in presets]
    rows = [compare(kind, name, args.detections) for kind, name in tqdm(pairs, leave=False, disable=None)]
    if args.json:
        return json.dumps({"rows": rows, "detections": args.detections, "notes": NOTES.format(**vars(args))}, indent=2)
    lines: list[tuple[str, ...]] = [COLUMNS]
    for row in rows:
        cells = [row["macs"] / 1e9, row["published_macs"] / 1e9, row["macs_difference_percent"]]
        cells += [row["params"] / 1e6, row["published_params"] / 1e6, row["params_difference_percent"]]
        heads = [row["head_macs"] / 1e9, row["macs_with_heads"] / 1e9] if row["head_macs"] else []
        texts = [f"{cell:+.2f}" if index in (2, 5) else f"{cell:.2f}" for index, cell in enumerate(cells + heads)]
        lines.append((f"{row['network']} {row['preset']}", *texts, *["-"] * (8 - len(texts))))
    if args.markdown:
        lines.insert(1, ("---", *["---:"] * 8))
        texts = [*(f"| {' | '.join(line)} |" for line in lines), ""]
    else:
        texts = [f"{line[0]:<19}" + "".join(f"{cell:>10}" for cell in line[1:]) for line in lines]
    return "\n".join([*texts, NOTES.format(**vars(args))])


def main(args: argparse.Namespace) -> None:
    if args.rank and (args.weights or args.preset):
        source = f"--weights {args.weights}" if args.weights else f"--preset {args.preset}"
        raise InputError(f"--rank: expected it alone or with --ratios, got {source}, which has its own; leave it out")
    if args.input_size and min(args.input_size) < 1:
        raise InputError(f"--input-size: expected height and width of 1 or more, got {args.input_size}; write 800 800")
    if args.arch and args.weights:
        raise InputError(
            f"--arch: expected it with a preset, rank or ratios, got --weights {args.weights}; leave it out"
        )
    if not (args.weights or args.preset or args.rank or args.ratios):
        if args.detector or args.input_size or args.arch:
            raise InputError("network: expected --weights, --preset, --rank or --ratios, got none; add --preset dense")
        print(published_tables(args))
        return
    if args.markdown:
        raise InputError("--markdown: expected without a network, got one; it is for the published tables")
    model = requested_network(args)
    side = 800 if is_detector(model) else 224
    size = (3, *(args.input_size or (side, side)))
    complexity = count_complexity(model, size, proposals=args.proposals, detections=args.detections)
    print(json.dumps(complexity.to_dict(), indent=2) if args.json else complexity.table(args.depth))

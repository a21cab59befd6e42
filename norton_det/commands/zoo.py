"""The work of ``norton-det zoo``; ``options/zoo.py`` says what it is."""

import argparse
import json
from typing import Any

from ..checkpoint import zoo
from ..checkpoint.zoo_table import Entry
from ..utils.errors import InputError

COLUMNS = ("name", "config", "MACs G", "paper", "params M", "paper", "paper, %", "weights")
NOTES = """MACs: of 224x224, of detectors 800x800 with 1000 proposals, mask heads left out and keypoint heads with one
detection, as published. Accuracy: ImageNet Top-1, COCO AP of boxes, masks (mask_rcnn) and keypoints (keypoint_rcnn);
in the paper, and of dense-detectron2 in Detectron2's model zoo. Where no weights are named, nobody publishes them
under a known name."""


def main(args: argparse.Namespace) -> None:
    if args.json and (args.download or args.verify):
        raise InputError("--json: expected it with the table or a name, got another task; leave it out")
    if args.verify:
        print(zoo.verify(args.verify))
        return
    if args.download:
        file = zoo.weights_path(args.download)
        print(file)
        print(f"SHA-256 {zoo.file_digest(file)}")
        return
    if args.name:
        entry = zoo.find(args.name)
        print(json.dumps(fields(entry), indent=1) if args.json else in_full(entry))
        return
    print(json.dumps([fields(entry) for entry in zoo.entries()], indent=1) if args.json else table())


def fields(entry: Entry) -> dict[str, Any]:
    """An entry as JSON has it; published figures as plain numbers, ``null`` where the paper has none."""
    scale = (entry.published_macs, 1e9), (entry.published_params, 1e6)
    macs, params = (None if value is None else round(value * factor) for value, factor in scale)
    weights = entry.weights
    return {
        "name": entry.name,
        "config": entry.config or None,
        "macs": entry.macs,
        "params": entry.params,
        "published_macs": macs,
        "published_params": params,
        "published": dict(entry.published),
        "measured": list(entry.measured),
        "weights": weights
        and {
            "url": weights.url,
            "owner": weights.owner,
            "sha256": weights.sha256 or None,
            "md5": weights.md5 or None,
        },
        "page": entry.page or None,
    }


def table() -> str:
    """All entries, a line each."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for entry in zoo.entries():
        metric = next((f"{name} {value:g}" for name, value in entry.published if name in ("Top-1", "AP")), "-")
        costs = (entry.macs / 1e9, entry.published_macs, entry.params / 1e6, entry.published_params)
        texts = ["-" if value is None else f"{value:.2f}" for value in costs]
        lines.append((entry.name, entry.config or "-", *texts, metric, weights_of(entry)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    rows = [
        "  ".join(
            cell.rjust(width) if 2 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*rows, "", NOTES])


def weights_of(entry: Entry) -> str:
    """Who publishes the weights of an entry."""
    if entry.weights is not None:
        return entry.weights.owner
    return "see its page" if entry.page else "-"


def in_full(entry: Entry) -> str:
    """All that is known of one entry."""
    weights = entry.weights
    unknown = "-" if weights is None else "unknown"
    published = (entry.published_macs, "G"), (entry.published_params, "M")
    macs, params = ("-" if value is None else f"{value:.2f} {unit}" for value, unit in published)
    rows = {
        "name": entry.name,
        "config": str(zoo.config_path(entry.name)) if entry.config else "-",
        "MACs": f"{entry.macs:,}, published {macs}",
        "parameters": f"{entry.params:,}, published {params}",
        "published": ", ".join(f"{name} {value:g} %" for name, value in entry.published) or "-",
        "measured here": "; ".join(entry.measured) or "-",
        "weights": weights.url if weights else (f"none of a known name; see {entry.page}" if entry.page else "none"),
        "SHA-256": f"{weights.sha256}..." if weights and weights.sha256 else unknown,
        "MD5": f"{weights.md5}..." if weights and weights.md5 else unknown,
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows.items())

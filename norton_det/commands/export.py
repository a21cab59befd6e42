"""The work of ``norton-det export``; ``options/export.py`` says what it is."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.ops import box_iou

from ..data.decode import read_image
from ..data.images import load_pictures
from ..data.register import register_entries
from ..deploy import Detections, Predictor, export
from ..deploy.info import describe
from ..deploy.loading import load_detector
from ..deploy.predictor import prepare
from ..utils.errors import InputError, naming
from ..utils.files import require_writable, write_text
from .parser import tell_skipped


def fitting(detector: nn.Module, options: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A function that passes on a picture (H, W, 3), RGB, uint8; one too thin for the detector is an ``InputError``."""
    info = describe(detector, **options)

    def check(picture: np.ndarray) -> np.ndarray:
        prepare(info, picture, "RGB")
        return picture

    return check


def compare(expected: Detections, exported: Detections) -> dict[str, float]:
    """How far detections of an exported file are from those of PyTorch: how many each has, and the largest difference
    of boxes (pixels) and scores over the pairs of one label whose IoU is above 0.9."""
    overlaps = box_iou(torch.tensor(expected.boxes), torch.tensor(exported.boxes)).numpy()
    overlaps = np.where(expected.labels[:, None] == exported.labels, overlaps, 0.0)
    pairs = [(row, int(ious.argmax())) for row, ious in enumerate(overlaps) if ious.max(initial=0.0) > 0.9]
    boxes = (float(np.abs(exported.boxes[other] - expected.boxes[row]).max()) for row, other in pairs)
    scores = (float(abs(exported.scores[other] - expected.scores[row])) for row, other in pairs)
    return {
        "expected": len(expected),
        "found": len(exported),
        "matched": len(pairs),
        "box_pixels": max(boxes, default=0.0),
        "score": max(scores, default=0.0),
    }


def main(args: argparse.Namespace) -> None:
    if (args.precision == "int8") != bool(args.calibrate):
        raise InputError("--calibrate: expected pictures with --precision int8 and none else; give both or neither")
    if args.json and not args.check:
        raise InputError("--json: expected pictures to compare on, got none; give --check IMAGE")
    for path in args.check:
        read_image(path)
    for path in filter(None, (args.output, args.json)):
        require_writable(path)
    register_entries(args.register)
    detector = load_detector(args.weights, args.config_file, args.opts)
    options: dict[str, Any] = {
        name: value for name in ("min_size", "max_size") if (value := getattr(args, name)) is not None
    }
    options |= {"classes": [name.strip() for name in args.classes.split(",")]} if args.classes else {}
    pictures = None
    if args.calibrate:
        pictures, broken = load_pictures(
            args.calibrate, fitting(detector, options), count=args.images, progress=not args.quiet
        )
        tell_skipped(broken)
    started = time.perf_counter()
    info = export(
        detector, args.output, precision=args.precision, calibration=pictures, progress=not args.quiet, **options
    )
    files = [Path(args.output), *([Path(args.output).with_suffix(".bin")] if args.output.endswith(".xml") else [])]
    size = sum(file.stat().st_size for file in files)
    print(f"{args.output}: {info.precision}, {size / 1e6:.1f} MB, {time.perf_counter() - started:.1f} s")
    if not args.check:
        return
    plain, exported = Predictor(detector, **options), Predictor(args.output)
    rows = {}
    print(f"{'picture':30} {'PyTorch':>8} {exported.name:>13} {'matched':>8} {'box px':>8} {'score':>9}")
    for path in args.check:
        with naming(path):
            row = rows[path] = compare(plain(read_image(path)), exported(read_image(path)))
        print(
            f"{Path(path).name[-30:]:30} {row['expected']:8d} {row['found']:13d} {row['matched']:8d} "
            f"{row['box_pixels']:8.4f} {row['score']:9.2e}"
        )
    if args.json:
        write_text(args.json, json.dumps(rows, indent=1) + "\n")

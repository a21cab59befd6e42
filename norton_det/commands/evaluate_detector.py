"""The work of ``norton-det evaluate-detector``; ``options/evaluate_detector.py`` says what it is."""

import argparse
import contextlib
import json
import os
import sys
import time
from typing import Any

import numpy as np
from detectron2.utils.logger import setup_logger

from ..d2.evaluation import class_rows, evaluate_predictor, format_classes, format_rows, published_columns, without_nan
from ..data.register import check_datasets, register_entries
from ..deploy import Detections, Predictor
from ..deploy.loading import load_predictor
from ..deploy.native import NativePredictor
from ..live import Meter
from ..live.detectors import DetectorSource
from ..utils.files import require_writable, write_text


def describe(args: argparse.Namespace, predictor: Predictor | NativePredictor, clock: Meter) -> dict[str, Any]:
    """The detector that was evaluated and its median time for a picture, as norton-det visualize reads them."""
    info = predictor.info
    return {
        "name": DetectorSource(args.weights, args.config_file).title,
        "engine": predictor.name,
        "precision": args.precision or info.precision,
        "ms": clock.median_ms,
        "macs": info.macs,
        "params": info.params,
    }


def main(args: argparse.Namespace) -> None:
    register_entries(args.register)
    check_datasets(args.dataset)
    if args.json:
        require_writable(args.json)
    predictor = load_predictor(
        args.weights,
        args.config_file,
        args.opts,
        precision=args.precision,
        min_size=args.min_size,
        threads=args.threads,
        eager=args.eager,
    )
    setup_logger(name="detectron2").setLevel("WARNING")
    clock = Meter()

    def predict(picture: np.ndarray) -> Detections:
        started = time.perf_counter()
        detections = predictor(picture)
        clock.add(time.perf_counter() - started)
        return detections

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # pycocotools prints its own table
        results = evaluate_predictor(
            predict,
            args.dataset,
            info=predictor.info,
            oks_sigmas=args.oks_sigmas,
            tell=lambda line: print(line, file=sys.stderr),
            output_dir=args.output,
            progress=not args.quiet,
        )
    print(f"{args.dataset}, {predictor.name}, {args.precision or predictor.info.precision}")
    print(f"{format_rows(published_columns(results))}\n{format_classes(class_rows(results))}".rstrip())
    if args.json:
        content = without_nan(results) | {"detector": describe(args, predictor, clock)}
        write_text(args.json, json.dumps(content, indent=1, allow_nan=False) + "\n")

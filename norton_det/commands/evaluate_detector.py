"""The work of ``norton-det evaluate-detector``; ``options/evaluate_detector.py`` says what it is."""

import argparse
import contextlib
import json
import os
import sys
import time
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

from ..d2.evaluation import class_rows, evaluate_predictor, format_classes, format_rows, published_columns, without_nan
from ..data.register import check_datasets, register_entries
from ..deploy import Detections, Predictor
from ..deploy.loading import load_predictor
from ..deploy.native import NativePredictor
from ..live import Meter
from ..live.detectors import DetectorSource
from ..utils.errors import InputError
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


def check_labels(predictor: Predictor | NativePredictor, dataset: str) -> None:
    """Refuse a detector that is known to have another number of classes than the data set; tell other names."""
    classes, names = predictor.info.classes, tuple(MetadataCatalog.get(dataset).thing_classes)
    if not classes or classes[-len(names) :] == names:
        return
    if len(classes) - len(names) not in (0, 1):  # torchvision's may begin with the background
        raise InputError(
            f"{dataset}: expected a data set of the detector's {len(classes)} classes ({', '.join(classes[:3])}, ...), "
            f"got one of {len(names)} ({', '.join(names[:3])}, ...); name the one that it is for"
        )
    print(f"classes of the detector: {', '.join(classes)}; of {dataset}: {', '.join(names)}", file=sys.stderr)


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
    check_labels(predictor, args.dataset)
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
            first_label=1 if predictor.info.stack == "torchvision" else 0,
            output_dir=args.output,
            progress=not args.quiet,
        )
    print(f"{args.dataset}, {predictor.name}, {args.precision or predictor.info.precision}")
    print(f"{format_rows(published_columns(results))}\n{format_classes(class_rows(results))}".rstrip())
    if args.json:
        content = without_nan(results) | {"detector": describe(args, predictor, clock)}
        write_text(args.json, json.dumps(content, indent=1, allow_nan=False) + "\n")

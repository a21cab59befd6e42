#!/usr/bin/env python3
"""COCO AP of a detector in any form it runs in: a file of tools/export.py (.xml, .onnx), or a detector of either stack
in PyTorch, dense or compressed."""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from norton_det.cli import parser, run

# isort: split
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

from norton_det.d2.evaluation import (
    class_rows,
    evaluate_predictor,
    format_classes,
    format_rows,
    published_columns,
    without_nan,
)
from norton_det.data.images import read_image
from norton_det.data.register import check_datasets, register_entries
from norton_det.deploy import Detections, Predictor
from norton_det.deploy.native import NativePredictor
from norton_det.deploy.source import load_predictor
from norton_det.errors import InputError
from norton_det.files import atomic_path, require_writable
from norton_det.live import Meter
from norton_det.live.choice import Choice

EXAMPLES = """
  tools/evaluate_detector.py --weights detector.xml --dataset coco_2017_val
  tools/evaluate_detector.py --weights detector.xml --precision bf16 --dataset bccd_test
  tools/evaluate_detector.py --weights detector.safetensors --dataset coco_2017_val    # of torchvision, in PyTorch
  tools/evaluate_detector.py --config norton_faster_rcnn.yaml --weights model_final.pth --dataset mine_val \\
      --register mine_val=data/val.json:data/images --json ap.json
"""


def make_parser() -> argparse.ArgumentParser:
    own = parser(__doc__, EXAMPLES)
    own.add_argument("--weights", required=True, metavar="FILE", help=".xml, .onnx, or a detector's weights")
    own.add_argument("--config-file", "--config", metavar="FILE", help="of a Detectron2 detector in PyTorch")
    own.add_argument("--dataset", required=True, metavar="NAME", help="to evaluate on, such as coco_2017_val")
    own.add_argument("--register", action="append", default=[], metavar="NAME=JSON:IMAGES", help="a data set of yours")
    own.add_argument("--precision", choices=("f32", "bf16"), help="of the engine; by default what the file says")
    own.add_argument("--eager", action="store_true", help="as the detector's own stack runs it, not its deploy form")
    own.add_argument("--min-size", type=int, metavar="S", help="short side of the input, of a detector in PyTorch")
    own.add_argument("--threads", type=int, help="of ONNX Runtime and OpenVINO; by default all cores")
    own.add_argument("--output", metavar="DIR", help="keep the detections there, in COCO's result format")
    own.add_argument("--json", metavar="FILE", help="write the metrics there, with MACs and time")
    own.add_argument("--quiet", action="store_true", help="no progress bar")
    own.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return own


def about(args: argparse.Namespace, predictor: Predictor | NativePredictor, clock: Meter) -> dict[str, Any]:
    """What was evaluated, and the median time of a picture, for tools/visualize_results.py."""
    info = predictor.info
    return {
        "name": Choice(args.weights, args.config_file).title,
        "engine": predictor.name,
        "precision": args.precision or info.precision,
        "ms": clock.median_ms,
        "macs": info.macs,
        "params": info.params,
    }


def check_labels(predictor: Predictor | NativePredictor, dataset: str) -> None:
    """Refuse a detector that is known to have another number of classes than the data set; tell other names."""
    own, names = predictor.info.classes, tuple(MetadataCatalog.get(dataset).thing_classes)
    if not own or own[-len(names) :] == names:
        return
    if len(own) - len(names) not in (0, 1):  # torchvision's may begin with the background
        raise InputError(
            f"{dataset}: expected a data set of the detector's {len(own)} classes ({', '.join(own[:3])}, ...), got one "
            f"of {len(names)} ({', '.join(names[:3])}, ...); name the one that it is for"
        )
    print(f"classes of the detector: {', '.join(own)}; of {dataset}: {', '.join(names)}", file=sys.stderr)


def main() -> None:
    args = make_parser().parse_args()
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
        found = predictor(picture)
        clock.add(time.perf_counter() - started)
        return found

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # pycocotools prints its own table
        results = evaluate_predictor(
            predict,
            args.dataset,
            lambda path: np.asarray(read_image(Path(path))),
            first_label=1 if predictor.info.stack == "torchvision" else 0,
            output_dir=args.output,
            progress=not args.quiet,
        )
    print(f"{args.dataset}, {predictor.name}, {args.precision or predictor.info.precision}")
    print(f"{format_rows(published_columns(results))}\n{format_classes(class_rows(results))}".rstrip())
    if args.json:
        with atomic_path(args.json) as temporary:
            content = without_nan(results) | {"detector": about(args, predictor, clock)}
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    run(main)

"""The work of ``norton-det visualize``; ``options/visualize_results.py`` says what it is."""

import argparse
import csv
import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ..data.decode import read_image
from ..data.images import beside
from ..data.register import check_datasets, register_entries
from ..deploy import Detections
from ..live import Frame, Overlay
from ..live.sink import PictureSink
from ..utils.errors import InputError
from ..utils.files import require_writable
from ..utils.plots import plot_scatter


def main(args: argparse.Namespace) -> None:
    if bool(args.predictions) != bool(args.dataset):
        raise InputError("--predictions, --dataset: expected both or neither, got one; give the other")
    if not (args.predictions or args.plot):
        raise InputError("expected something to show; give --predictions and --dataset, or --plot")
    if args.images < 1:
        raise InputError(f"--images: expected 1 or more, got {args.images}; raise it")
    output = Path(args.output)
    require_writable(output / "picture.jpg")
    for folder in args.plot:
        if not Path(folder).is_dir():
            raise InputError(f"{folder}: expected a folder of results, found none; check the path")
    register_entries(args.register)
    if args.predictions:
        check_datasets(args.dataset)
        draw(args, output)
    if args.plot:
        plot(args.plot, output)


def draw(args: argparse.Namespace, output: Path) -> None:
    """Pictures of the data set: ground truth on the left, predictions on the right."""
    from detectron2.data import DatasetCatalog, MetadataCatalog  # not above: plots need no Detectron2

    from ..d2.predictions import annotations_of, read_predictions

    predictions = read_predictions(args.predictions, args.dataset)
    overlay = Overlay(MetadataCatalog.get(args.dataset).thing_classes)
    records = list(DatasetCatalog.get(args.dataset))
    folders = {Path(record["file_name"]).resolve().parent for record in records}
    if output.resolve() in folders:
        raise InputError(f"{output}: expected another folder than that of the images, got it; name another")
    chosen = sorted(random.Random(args.seed).sample(range(len(records)), min(args.images, len(records))))
    nothing = Detections.none()
    sink = PictureSink(output)
    for index in chosen:
        record = records[index]
        image = np.ascontiguousarray(read_image(record["file_name"])[:, :, ::-1])
        truth = annotations_of(record)
        predicted = predictions.get(record["image_id"], nothing).above(args.confidence_threshold)
        caption = f"found above {args.confidence_threshold:g}: {len(predicted)}"
        left = overlay.draw(image, truth, [f"annotated: {len(truth)}"], scores=False)
        right = overlay.draw(image, predicted, [caption])
        sink.write(beside([left, right]), Frame(image, index, 0.0, Path(record["file_name"]).name))
    print(f"{output}: {len(chosen)} pictures of {args.dataset}, annotated left, found right")


def plot(folders: list[str], output: Path) -> None:
    """AP against MACs and against milliseconds, a plot for each task that there are figures of."""
    points = [point for folder in folders for point in collect(Path(folder))]
    has_results = False
    for task in dict.fromkeys(point["task"] for point in points):
        for key, label in (("macs", "MACs, G (800x800)"), ("ms", "milliseconds of the detector for a picture")):
            measured = [point for point in points if point["task"] == task and point.get(key)]
            if not measured:
                continue
            scale = 1e-9 if key == "macs" else 1.0
            names = [point["name"] for point in measured]
            series = {
                (f"{point['where']}: " if names.count(point["name"]) > 1 else "") + point["name"]: (
                    point[key] * scale,
                    point["AP"],
                )
                for point in measured
            }
            path = output / f"{task}_{key}.png"
            if plot_scatter(path, series, label, f"AP ({task})"):
                print(f"{path}: {len(series)} detectors")
            has_results = True
    if not has_results:
        raise InputError(f"{', '.join(folders)}: expected results with AP and MACs or ms, found none; see --help")


def collect(folder: Path) -> list[dict[str, Any]]:
    """Detectors of a folder and those below: name, task, AP, and macs and ms where they are known."""
    points: list[dict[str, Any]] = []
    for path in sorted([*folder.rglob("*.json"), *folder.rglob("*.csv")]):
        try:
            rows = from_json(path) if path.suffix == ".json" else from_csv(path)
            points += [point | {"where": path.relative_to(folder)} for point in rows]
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, csv.Error):
            print(f"passed over, no results of a detector: {path}", file=sys.stderr)
    return points


def from_json(path: Path) -> list[dict[str, Any]]:
    """The --json of norton-det evaluate-detector."""
    content = json.loads(path.read_text(encoding="utf-8"))
    detector = content.pop("detector")
    name = f"{detector['name']} ({detector['engine']} {detector['precision']})"
    return [
        {"name": name, "task": task, "AP": float(metrics["AP"]), "macs": detector["macs"], "ms": detector["ms"]}
        for task, metrics in content.items()
    ]


def from_csv(path: Path) -> list[dict[str, Any]]:
    """compare.csv, the mean over seeds, or tradeoff.csv."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            groups[row.get("name") or row["case"], row.get("task") or "bbox"].append(row)
    points = []
    for (name, task), rows in groups.items():
        point: dict[str, Any] = {"name": name, "task": task, "AP": float(np.mean([float(row["AP"]) for row in rows]))}
        points.append(point | {key: float(rows[0][key]) for key in ("macs", "ms") if rows[0].get(key)})
    return points

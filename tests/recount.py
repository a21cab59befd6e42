"""COCO metrics as pycocotools has them, from the files that an evaluation reads and writes."""

from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BOXES = {"AP": 0, "AP50": 1, "AP75": 2, "AR1": 6, "AR10": 7, "AR100": 8}  # column -> place in COCOeval.stats
KEYPOINTS = {"AP": 0, "AP50": 1, "AP75": 2, "AR": 5, "AR50": 6, "AR75": 7}


def evaluated(truth: COCO, predictions: str | list, task: str) -> COCOeval:
    """COCOeval of bbox, segm or keypoints, its numbers summarised."""
    evaluation = COCOeval(truth, truth.loadRes(predictions), task)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def percentages(evaluation: COCOeval, task: str) -> dict[str, float]:
    """AP and AR in percent by their columns."""
    places = KEYPOINTS if task == "keypoints" else BOXES
    return {column: 100 * float(evaluation.stats[place]) for column, place in places.items()}


def recount(annotations: Path, predictions: Path, task: str) -> dict[str, float]:
    """AP and AR in percent of a file of predictions."""
    return percentages(evaluated(COCO(annotations), str(predictions), task), task)

"""Detections as a web page draws them: boxes, polygons of masks, keypoints, in shares of the picture's sides."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.coco import SKELETON
from ..deploy.predictor import Detections, class_name

COARSE = 1.5  # pixels that a mask's outline may be off
DIGITS = 4


def to_answer(detections: Detections, height: int, width: int, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One object of plain values for each detection in a picture of that size.

    Keys: ``box`` (x0, y0, x1, y1), ``score``, ``label``, ``name``; ``mask``, polygons of (x, y, x, y, ...), and
    ``keypoints``, (x, y, score) each, where there are some. Places are shares of width and height, 0 to 1.
    """
    sides = np.array([width, height], np.float32)
    objects: list[dict[str, Any]] = []
    for index in range(len(detections)):
        label = int(detections.labels[index])
        answer: dict[str, Any] = {
            "box": _rounded(detections.boxes[index] / np.tile(sides, 2)),
            "score": round(float(detections.scores[index]), DIGITS),
            "label": label,
            "name": class_name(classes, label),
        }
        if detections.masks is not None:
            answer["mask"] = [_rounded((outline / sides).ravel()) for outline in _outlines(detections.masks[index])]
        if detections.keypoints is not None:
            points = detections.keypoints[index] / np.array([width, height, 1], np.float32)
            answer["keypoints"] = [_rounded(point) for point in points]
        objects.append(answer)
    return objects


def skeleton() -> list[list[int]]:
    """COCO's limbs as pairs of indices of keypoints, from 0."""
    return [[first - 1, second - 1] for first, second in SKELETON]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), DIGITS) for value in values]


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outer outlines (N, 2) as x, y of a mask (H, W)."""
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    coarse = (cv2.approxPolyDP(contour, COARSE, True)[:, 0] for contour in contours)
    return [outline.astype(np.float32) for outline in coarse if len(outline) >= 3]

"""Boxes, masks and keypoints of COCO's formats, each checked on its own: annotations and predictions alike.

pycocotools draws what it is told to, so that one coordinate of 1e9 is 20 GB: it is not called on anything unchecked.
"""

import math
import reprlib
from typing import Any

import numpy as np

MAX_SIDE = 65_536  # pixels of an image
MAX_COORDINATE = 2 * MAX_SIDE  # objects may reach out of the image
MAX_OUTLINE = 1 << 22  # pixels round a polygon; pycocotools takes 100 bytes for each

_NUMBERS = {int, float}


def short(value: Any) -> str:
    """A value in one short line."""
    return reprlib.repr(value)


def is_number(value: Any, least: float, most: float) -> bool:
    """Whether it is a number of that range; neither NaN nor a truth value is."""
    return type(value) in _NUMBERS and least <= value <= most


def box_problem(box: Any) -> str:
    """What is wrong with ``[x, y, width, height]`` in pixels; empty where it will do. A side may be 0."""
    if not isinstance(box, list) or len(box) != 4 or not _in_range(box):
        return f"bbox: expected [x, y, width, height], got {short(box)}; give four numbers of pixels"
    if box[2] < 0 or box[3] < 0:
        return f"bbox: expected a width and height of 0 or more, got {short(box)}; give [x, y, width, height]"
    return ""


def mask_problem(mask: Any, height: int, width: int, least: int = 6) -> str:
    """What is wrong with polygons or runs (RLE) of an image of that size; empty where they will do.

    Args:
        mask: COCO's ``segmentation``.
        height, width: of the image.
        least: numbers of a polygon.
    """
    if isinstance(mask, dict):
        return _runs_problem(mask, height, width)
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return f"segmentation: expected polygons or runs, got {short(mask)}; give [[x, y, x, y, x, y, ...], ...]"
    for polygon in mask:
        if len(polygon) < least or len(polygon) % 2:
            return f"segmentation: expected x, y of three points or more, got {len(polygon)} numbers; drop that polygon"
        if not _in_range(polygon):
            return f"segmentation: expected numbers of pixels, got {short(_odd_one(polygon))}; draw the polygon anew"
        # a bound that needs no look at each edge settles nearly all
        if len(polygon) * (max(polygon) - min(polygon)) > 2 * MAX_OUTLINE and _outline(polygon) > MAX_OUTLINE:
            return f"segmentation: expected an outline of {MAX_OUTLINE} pixels at most, got a longer; draw it simpler"
    return ""


def keypoints_problem(points: Any, count: int, visibility: bool = True) -> str:
    """What is wrong with ``[x, y, v, ...]`` of so many keypoints; empty where they will do.

    Args:
        points: COCO's ``keypoints``.
        count: of the category.
        visibility: whether each third number is 0, 1 or 2; the score of a prediction is any number.
    """
    if not isinstance(points, list) or len(points) != 3 * count or (points and not _in_range(points)):
        return f"keypoints: expected x, y, v of {count} keypoints, got {short(points)}; give {3 * count} numbers"
    if visibility and not {*points[2::3]} <= {0, 1, 2}:
        return f"keypoints: expected visibilities 0, 1 or 2, got {short(points[2::3])}; mend each third number"
    return ""


def decode_counts(text: str) -> np.ndarray:
    """Lengths of the runs (N,) that COCO's compressed form says: 5 bits a character, differences from the fourth on.

    Raises:
        ValueError: it is no such text.
    """
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] > 31:
        raise ValueError("not COCO's compressed counts")
    ends = np.flatnonzero(codes < 32)  # 32 says that the number goes on
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a run longer than any image")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * places), starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def _runs_problem(runs: dict[str, Any], height: int, width: int) -> str:
    size, counts = runs.get("size"), runs.get("counts")
    if not isinstance(size, list) or size != [height, width] or {*map(type, size)} != {int}:
        return f"segmentation: expected runs of the size [{height}, {width}], got {short(size)}; make them anew"
    expected = f"segmentation: expected counts of 0 or more that sum to the image's {height * width} pixels"
    if isinstance(counts, str):
        try:
            lengths = decode_counts(counts)
        except ValueError as error:
            return f"{expected}, got {short(counts)} ({error}); make them anew"
        least, total = int(lengths.min()), int(lengths.sum())
    elif isinstance(counts, list) and counts and {*map(type, counts)} == {int}:
        least, total = min(counts), sum(counts)
    else:
        return f"{expected}, got {short(counts)}; make them anew"
    if least < 0 or total != height * width:
        return f"{expected}, got {'some below 0' if least < 0 else f'a sum of {short(total)}'}; make them anew"
    return ""


def _in_range(values: list[Any]) -> bool:
    """Whether all are finite numbers of a size that coordinates have. Not NaN: the sum would be."""
    return (
        {*map(type, values)} <= _NUMBERS
        and -MAX_COORDINATE <= min(values)
        and max(values) <= MAX_COORDINATE
        and not math.isnan(sum(values))
    )


def _odd_one(values: list[Any]) -> Any:
    return next(value for value in values if not _in_range([value]))


def _outline(polygon: list[float]) -> float:
    """Pixels that pycocotools walks along the edges."""
    corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())

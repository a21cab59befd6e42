"""COCO's annotation format: categories and keypoints, masks to polygons and runs, and the check of a JSON file.

Pixel (x, y) covers [x, x+1] x [y, y+1] in the coordinates of boxes and polygons; keypoints are whole pixel indices,
to which Detectron2 adds 0.5 when it loads them.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import require_file

KEYPOINT_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""COCO's 17 keypoints of a person, in its order."""

SKELETON = (
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9), (8, 10), (9, 11),
    (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
)  # fmt: skip
"""COCO's limbs as pairs of 1-based indices into ``KEYPOINT_NAMES``."""


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Polygons that pycocotools turns back into exactly this mask.

    A polygon of COCO has no holes: a region with a hole is cut in two at a column through the hole.

    Args:
        mask: (H, W) bool.

    Returns:
        A list of ``[x0, y0, x1, y1, ...]`` in pixels; empty for an empty mask.
    """
    import cv2

    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(columns) == 0:
        return []
    left, top = int(columns[0]), int(rows[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # Twice the size: a contour runs through pixel centres, now a quarter of a pixel inside the region's edge.
    twice = part.repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
        if parent >= 0:
            hole = contour[:, 0, 0]
            column = left + (int(hole.min()) + int(hole.max()) + 1) // 4
            first, second = mask.copy(), mask.copy()
            first[:, column:] = False
            second[:, :column] = False
            return mask_to_polygons(first) + mask_to_polygons(second)
    return [((contour[:, 0, :] + 0.5) / 2 + (left, top)).ravel().tolist() for contour in contours]


def mask_to_runs(mask: np.ndarray) -> dict[str, list[int]]:
    """Uncompressed run-length encoding, as COCO stores crowds: column by column, the first run counts zeros.

    Args:
        mask: (H, W) bool.
    """
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return {"counts": [0, *runs] if flat[0] else runs, "size": list(mask.shape)}


def mask_to_box(mask: np.ndarray) -> list[float]:
    """``[x, y, width, height]`` in pixels of the smallest box round a non-empty mask (H, W)."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, top = int(columns[0]), int(rows[0])
    return [float(left), float(top), float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)]


def read_coco(annotations: str | Path, image_root: str | Path) -> dict[str, Any]:
    """The content of a COCO JSON file, with what Detectron2 and pycocotools take for granted checked.

    Args:
        annotations: the JSON file.
        image_root: the folder that holds its images.

    Raises:
        InputError: a file or folder is missing, the JSON is not COCO's, or a listed image is not in the folder.
    """
    file, folder = require_file(annotations, "COCO annotations (JSON)"), Path(image_root)
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the folder of the images of {file}, found none; check the path")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: expected COCO annotations (JSON), got text that does not parse ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object with images, annotations and categories, got another value")
    images = _records(file, content, "images", ("id", "file_name", "height", "width"))
    instances = _records(file, content, "annotations", ("id", "image_id", "category_id", "bbox", "area", "iscrowd"))
    categories = _records(file, content, "categories", ("id", "name"))
    if not categories:
        raise InputError(f"{file}: categories: expected at least one, got none; list the classes")
    for field, records in (("images", images), ("annotations", instances), ("categories", categories)):
        if len({record["id"] for record in records}) != len(records):
            raise InputError(f"{file}: {field}: expected ids that differ, got one twice; number them anew")
    image_ids, category_ids = {image["id"] for image in images}, {category["id"] for category in categories}
    for instance in instances:
        where = f"{file}: annotation {instance['id']}"
        for key, known in (("image_id", image_ids), ("category_id", category_ids)):
            if instance[key] not in known:
                raise InputError(f"{where}: {key}: {instance[key]!r} is not listed; add or drop it")
        box = instance["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
            raise InputError(f"{where}: bbox: expected [x, y, width, height], got {box!r}; give four numbers")
    missing = [image["file_name"] for image in images if not (folder / str(image["file_name"])).is_file()]
    if missing:
        raise InputError(
            f"{folder}: expected {len(images)} images of {file}, {len(missing)} are missing, first {missing[0]}; "
            "add them or name the folder that holds them"
        )
    return content


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _records(file: Path, content: dict[str, Any], field: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    records = content.get(field)
    if not isinstance(records, list):
        raise InputError(f"{file}: {field}: expected a list, as COCO has it, got none; see datasets/README.md")
    for index, record in enumerate(records):
        if not isinstance(record, dict) or not set(keys) <= set(record):
            lacking = next((key for key in keys if not isinstance(record, dict) or key not in record), keys[0])
            named = f" (id {record['id']})" if isinstance(record, dict) and "id" in record else ""
            raise InputError(f"{file}: {field}[{index}]{named}: expected the field {lacking}, found none; add it")
    return records

"""COCO's annotation format: categories and keypoints, masks to polygons and runs, and the JSON file, read and checked.

Pixel (x, y) covers [x, x+1] x [y, y+1] in the coordinates of boxes and polygons; keypoints are whole pixel indices,
to which Detectron2 adds 0.5 when it loads them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import InputError
from ..utils.files import require_file
from .coco_checks import CocoSummary, check_content, check_images, check_picture_sizes

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

_CHECKED: dict[tuple[Path, Path, int, int], CocoSummary] = {}


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
    box = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # Twice the size: a contour runs through pixel centres, now a quarter of a pixel inside the region's edge.
    twice = box.repeat(2, axis=0).repeat(2, axis=1)
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
        InputError: a file or folder is missing, the JSON is not COCO's, or a listed image is not in the folder; names
            the first record and field that will not do.
    """
    file = require_file(annotations, "COCO annotations (JSON)")
    return _read(file, Path(image_root), False)


def check_coco_file(annotations: str | Path, image_root: str | Path, *, short_polygons: bool = False) -> CocoSummary:
    """As ``read_coco``, for what the file has; one that was read and checked in this process is not read again.

    Args:
        annotations: the JSON file.
        image_root: the folder that holds its images.
        short_polygons: see ``check_content``.

    Raises:
        InputError: as ``read_coco``.
    """
    file, folder = require_file(annotations, "COCO annotations (JSON)"), Path(image_root)
    if _key(file, folder) not in _CHECKED:
        _read(file, folder, short_polygons)
    return _CHECKED[_key(file, folder)]


def _read(file: Path, folder: Path, short_polygons: bool) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the folder of the images of {file}, found none; check the path")
    key = _key(file, folder)
    try:
        content = json.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: expected COCO annotations, cannot read them ({error.strerror}); allow it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: expected COCO annotations (JSON), got text that does not parse ({error}); save it anew"
        ) from None
    summary = check_content(file, content, short_polygons=short_polygons)
    check_images(file, folder, content["images"])
    check_picture_sizes(file, folder, content["images"])
    _CHECKED[key] = summary
    return content


def _key(file: Path, folder: Path) -> tuple[Path, Path, int, int]:
    """What a file is known by until it changes."""
    status = file.stat()
    return file.resolve(), folder.resolve(), status.st_size, status.st_mtime_ns

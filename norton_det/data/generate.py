"""A generated data set in COCO's format and layout: boxes, visible masks, crowds and keypoints, drawn, not downloaded.

Layout, as that of COCO 2017::

    ROOT/train2017/*.jpg, ROOT/val2017/*.jpg
    ROOT/annotations/instances_{train,val}2017.json         5 classes
    ROOT/annotations/person_keypoints_{train,val}2017.json  the persons, with 17 keypoints

Every picture has a random generator of its own, seeded by (seed, split, index): a picture and its annotations are the
same whatever the sizes of the splits.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import InputError
from .coco import KEYPOINT_NAMES, SKELETON, mask_to_box, mask_to_polygons, mask_to_runs
from .folders import atomic_folder, is_free

SPLITS = ("train2017", "val2017")
KINDS = ("instances", "person_keypoints")
STAMP = "norton_shapes.json"
VERSION = 1  # raise it when the same seed would give other pictures
_MAX_IMAGES = 400_000  # per split, so that the ids of the splits cannot meet


def generate_dataset(
    root: str | Path,
    *,
    train: int = 400,
    val: int = 100,
    height: int = 192,
    width: int = 256,
    seed: int = 0,
    smallest: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Write the data set, whole or not at all; one that is there with the same parameters is reused.

    Args:
        root: the folder to make.
        train, val: number of images per split.
        height, width: of the images, in pixels; the figures scale with the shorter side.
        smallest: least size of a shape in pixels (of a person twice that), without crowds: an easier set, for trials
            that have to learn in minutes; 0 for the full range.
        seed: the same seed gives the same JSON, byte for byte, and the same images.
        progress: called with 1 after each image, such as ``tqdm(...).update``.

    Returns:
        ``root`` as a path.

    Raises:
        InputError: an argument is out of range, or the folder holds something else and is left as it is.
    """
    for field, value, low, high in (
        ("train", train, 1, _MAX_IMAGES),
        ("val", val, 1, _MAX_IMAGES),
        ("height", height, 96, 2048),
        ("width", width, 96, 2048),
        ("seed", seed, 0, 2**32 - 1),
        ("smallest", smallest, 0, min(height, width) // 4),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"{field}: expected a whole number from {low} to {high}, got {value!r}; choose within it")
    root = Path(root)
    stamp = {"version": VERSION, "train": train, "val": val, "height": height, "width": width, "seed": seed}
    stamp |= {"smallest": smallest} if smallest else {}
    if not is_free(root):
        _require_same(root, stamp)
        return root
    try:
        import cv2  # noqa: F401
    except ImportError:
        raise InputError(
            "generated data: expected OpenCV (cv2), found none; pip install opencv-python-headless"
        ) from None
    with atomic_folder(root) as temporary:
        (temporary / "annotations").mkdir()
        for index, (split, count) in enumerate(zip(SPLITS, (train, val), strict=True)):
            _write_split(temporary, index, split, count, (height, width), seed, smallest, progress)
        (temporary / STAMP).write_text(json.dumps(stamp) + "\n")
    return root


def _require_same(root: Path, stamp: dict[str, int]) -> None:
    """Refuse a folder that is not the complete data set with these parameters."""
    written: Any = None
    if (root / STAMP).is_file():
        try:
            written = json.loads((root / STAMP).read_text())
        except ValueError:
            written = None
    if not isinstance(written, dict):
        raise InputError(f"{root}: expected a new folder or a generated data set, got something else; name another")
    if written != stamp:
        differing = next(key for key in [*stamp, *written] if written.get(key) != stamp.get(key))
        raise InputError(
            f"{root}: expected a data set with {differing} {stamp.get(differing)}, got one with "
            f"{written.get(differing)}; delete it or name another folder"
        )
    if not is_complete(root):
        raise InputError(f"{root}: expected a complete data set, got one with files missing; delete it and run again")


def is_complete(root: str | Path) -> bool:
    """Whether the folder holds a generated data set with all its files."""
    root = Path(root)
    try:
        stamp = json.loads((root / STAMP).read_text())
        counts = [sum(1 for _ in (root / split).glob("*.jpg")) for split in SPLITS]
        annotated = all(annotation_file(root, kind, split).is_file() for split in SPLITS for kind in KINDS)
        return annotated and counts == [stamp["train"], stamp["val"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def annotation_file(root: str | Path, kind: str, split: str) -> Path:
    """Path of the annotations of one of ``KINDS`` for one of ``SPLITS``."""
    return Path(root) / "annotations" / f"{kind}_{split}.json"


def _write_split(
    root: Path,
    split_index: int,
    split: str,
    count: int,
    size: tuple[int, int],
    seed: int,
    smallest: int,
    progress: Callable[[int], object] | None,
) -> None:
    import cv2

    from .scene import CLASSES, render_scene

    (root / split).mkdir()
    height, width = size
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, split_index, index])
        picture, instances = render_scene(rng, height, width, smallest)
        image_id = split_index * 500_000 + index + 1
        name = f"{image_id:012d}.jpg"
        encoded, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 93])
        assert encoded
        (root / split / name).write_bytes(jpeg.tobytes())
        images.append({"license": 1, "file_name": name, "height": height, "width": width, "id": image_id})
        for number, instance in enumerate(instances, start=1):
            mask = instance.mask
            annotation: dict[str, Any] = {
                "segmentation": mask_to_runs(mask) if instance.is_crowd else mask_to_polygons(mask),
                "area": int(np.count_nonzero(mask)),
                "iscrowd": int(instance.is_crowd),
                "image_id": image_id,
                "bbox": mask_to_box(mask),
                "category_id": CLASSES.index(instance.name) + 1,
                "id": image_id * 100 + number,
            }
            keypoints = instance.keypoints
            if instance.name == "person" and keypoints is None:  # a crowd: COCO writes zeros
                keypoints = np.zeros((len(KEYPOINT_NAMES), 3), int)
            annotations.append((annotation, keypoints))
        if progress is not None:
            progress(1)
    categories = [
        {"supercategory": "person" if name == "person" else "shape", "id": number, "name": name}
        for number, name in enumerate(CLASSES, start=1)
    ]
    header = {
        "info": {"description": f"norton_det generated shapes, {split}", "version": str(VERSION), "year": 2025},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
    }
    person = {**categories[0], "keypoints": list(KEYPOINT_NAMES), "skeleton": [list(pair) for pair in SKELETON]}
    persons = [
        {**annotation, "num_keypoints": int(np.count_nonzero(points[:, 2])), "keypoints": points.ravel().tolist()}
        for annotation, points in annotations
        if points is not None
    ]
    instances_only = [annotation for annotation, _ in annotations]
    _write_json(
        annotation_file(root, "instances", split), {**header, "annotations": instances_only, "categories": categories}
    )
    _write_json(
        annotation_file(root, "person_keypoints", split), {**header, "annotations": persons, "categories": [person]}
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")))

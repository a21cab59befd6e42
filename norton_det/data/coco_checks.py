"""Checks of what a COCO JSON file says, record by record: what passes neither crashes COCO's tools nor misleads them.

What Python's JSON reader lets through is met here: NaN, numbers of any size, lists where an id belongs.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from .coco_units import boxes_problem, count_outside
from .coco_values import MAX_SIDE, box_problem, is_number, keypoints_problem, mask_problem, short
from .decode import UnreadableImage, picture_size

MAX_PIXELS = 178_956_970  # of an image; Pillow opens none that is larger
_LOOKED_INTO = 16  # pictures whose size is compared, of a file
MAX_AREA = 1e10  # pixels; COCO's evaluation leaves out what is larger

_IMAGE, _CATEGORY = ("id", "file_name", "height", "width"), ("id", "name")
_ANNOTATION = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


@dataclass(frozen=True)
class CocoSummary:
    """What a file has that passed the checks.

    Attributes:
        images: how many.
        objects: annotations that are no crowds.
        keypoints: of an object; 0 where no category has any.
        no_mask: id of the first annotation without a mask, ``None`` where all have one.
        no_keypoints: id of the first annotation without keypoints, ``None`` where all have them.
        remarks: what of it is not trained on or is odd, each with its number; empty where nothing is.
    """

    images: int
    objects: int
    keypoints: int
    no_mask: int | None
    no_keypoints: int | None
    remarks: str


def check_content(file: Path, content: Any, *, short_polygons: bool = False) -> CocoSummary:
    """Check the parsed JSON of a COCO file.

    Args:
        file: its name, for the error.
        content: what was parsed.
        short_polygons: let polygons of less than three points pass, which Detectron2 leaves out of training.

    Raises:
        InputError: names the first record and field that will not do, what was expected, and the mend.
    """
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object with images, annotations and categories, got another value")
    images = _records(file, content, "images", _IMAGE)
    annotations = _records(file, content, "annotations", _ANNOTATION)
    categories = _records(file, content, "categories", _CATEGORY)
    for field, records, mend in (("images", images, "list the images"), ("categories", categories, "list the classes")):
        if not records:
            raise InputError(f"{file}: {field}: expected at least one, got none; {mend}")
    _check_ids(file, "images", images, int | str)
    _check_ids(file, "annotations", annotations, int)
    _check_ids(file, "categories", categories, int)
    for what, records, problem_of in (("image", images, _image_problem), ("category", categories, _category_problem)):
        for record in records:
            if problem := problem_of(record):
                raise InputError(f"{file}: {what} {record['id']}: {problem}")
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    points = {category["id"]: len(category.get("keypoints") or ()) for category in categories}
    for annotation in annotations:
        if problem := _annotation_problem(annotation, sizes, points, 2 if short_polygons else 6):
            raise InputError(f"{file}: annotation {annotation['id']}: {problem}")
    objects = sum(not annotation["iscrowd"] for annotation in annotations)
    if not objects:
        raise InputError(
            f"{file}: annotations: expected at least one that is no crowd, got none; there is nothing to train on or "
            "to measure, annotate some images"
        )

    if problem := boxes_problem(file, annotations, sizes):
        raise InputError(f"{file}: {problem}")

    def first_without(field: str) -> Any:
        return next((annotation["id"] for annotation in annotations if not annotation.get(field)), None)

    most_points = max(points.values())
    return CocoSummary(
        len(images),
        objects,
        most_points,
        first_without("segmentation"),
        first_without("keypoints"),
        _remarks(images, annotations, sizes),
    )


def _remarks(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], sizes: dict[Any, tuple[int, int]]
) -> str:
    """What is left out of training, or is odd, in a file whose records are right, each with its number."""
    flat = [not (thing["bbox"][2] > 0 and thing["bbox"][3] > 0) for thing in annotations]
    with_objects = {
        thing["image_id"]
        for thing, no_area in zip(annotations, flat, strict=True)
        if not thing["iscrowd"] and not no_area
    }
    files = Counter(image["file_name"] for image in images)
    counts = {
        "crowds not trained on": sum(thing["iscrowd"] for thing in annotations),
        "boxes without area not trained on": sum(flat),
        "boxes that reach out of their pictures, cut there": count_outside(annotations, sizes),
        "images without objects": len(images) - len(with_objects),
        "files listed twice, as two pictures of which each lacks the other's objects": len(files - Counter(set(files))),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def check_images(file: Path, folder: Path, images: Iterable[dict[str, Any]]) -> None:
    """Check that the images which a file lists are in a folder, without a look into them.

    Raises:
        InputError: says how many are missing, and one of them.
    """
    names = [image["file_name"] for image in images]
    below = defaultdict(set)  # each folder is listed once: faster than to ask for each file
    for name in names:
        below[os.path.dirname(name)].add(os.path.basename(name))
    listed = {subfolder: _files_in(folder / subfolder) for subfolder in below}
    missing = [name for name in names if os.path.basename(name) not in listed[os.path.dirname(name)]]
    if missing:
        raise InputError(
            f"{folder}: expected {len(names)} images of {file}, {len(missing)} are missing, first {missing[0]}; "
            "add them or name the folder that holds them"
        )


def check_picture_sizes(file: Path, folder: Path, images: Sequence[dict[str, Any]]) -> None:
    """Check that some pictures of a file, spread over it, have the size that it says; unreadable ones are passed over.

    Raises:
        InputError: names the picture and both sizes.
    """
    for image in images[:: -(-len(images) // _LOOKED_INTO)]:
        try:
            width, height = picture_size(folder / image["file_name"])
        except UnreadableImage:
            continue
        if (width, height) != (image["width"], image["height"]):
            swapped = (height, width) == (image["width"], image["height"])
            mend = "give its size, and boxes for it"
            if swapped:  # what a tool wrote that does not turn pictures, or in the wrong order
                mend = "swap its width and height, or if it was annotated unturned: exiftool -Orientation= FILE"
            raise InputError(
                f"{file}: image {image['id']}: expected the size of {folder / image['file_name']}, {width} x {height} "
                f"pixels (turned as its EXIF data say), got {image['width']} x {image['height']}; {mend}"
            )


def _records(file: Path, content: dict[str, Any], field: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    records = content.get(field)
    if not isinstance(records, list):
        raise InputError(f"{file}: {field}: expected a list, as COCO has it, got none; see datasets/README.md")
    required = set(keys)
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(f"{file}: {field}[{index}]: expected a JSON object, got {short(record)}; see COCO's")
        if not required <= record.keys():
            lacking = next(key for key in keys if key not in record)
            named = f" (id {short(record['id'])})" if "id" in record else ""
            raise InputError(f"{file}: {field}[{index}]{named}: expected the field {lacking}, found none; add it")
    return records


def _check_ids(file: Path, field: str, records: Sequence[dict[str, Any]], kind: Any) -> None:
    """Whole numbers of 64 bits, or names for images, all of one kind and none twice."""
    if not records:
        return
    first = type(records[0]["id"])
    for index, record in enumerate(records):
        value = record["id"]
        good = type(value) is first and isinstance(value, kind) and first is not bool
        if not good or (first is int and not -(2**63) <= value < 2**63):
            expected = "whole numbers, or names for all" if kind is not int else "whole numbers"
            raise InputError(f"{file}: {field}[{index}]: id: expected {expected}, got {short(value)}; number them anew")
    if len({record["id"] for record in records}) != len(records):
        twice = Counter(record["id"] for record in records).most_common(1)[0][0]
        raise InputError(f"{file}: {field}: expected ids that differ, got {short(twice)} twice; number them anew")


def _image_problem(image: dict[str, Any]) -> str:
    for side in ("height", "width"):
        if type(image[side]) is not int or not 1 <= image[side] <= MAX_SIDE:
            return f"{side}: expected 1 to {MAX_SIDE} pixels, got {short(image[side])}; give that of the image"
    if image["height"] * image["width"] > MAX_PIXELS:
        return f"height x width: expected {MAX_PIXELS} pixels at most, got more; cut the image into smaller ones"
    name = image["file_name"]
    if not isinstance(name, str) or not name or "\0" in name:
        return f"file_name: expected the name of a file, got {short(name)}; give that of the image"
    if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        return f"file_name: expected a path below the folder of the images, got {short(name)}; leave out .. and roots"
    return ""


def _category_problem(category: dict[str, Any]) -> str:
    if not isinstance(category["name"], str) or not category["name"]:
        return f"name: expected a text, got {short(category['name'])}; name the class"
    names = category.get("keypoints") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"keypoints: expected a list of names, got {short(names)}; name each keypoint"
    if not isinstance(category.get("skeleton") or [], list):
        return f"skeleton: expected a list of pairs, got {short(category['skeleton'])}; give [[1, 2], ...]"
    return ""


def _annotation_problem(
    annotation: dict[str, Any], sizes: dict[Any, tuple[int, int]], points: dict[int, int], least: int
) -> str:
    image, category, area = annotation["image_id"], annotation["category_id"], annotation["area"]
    if type(image) not in (int, str) or image not in sizes:
        return f"image_id: {_not_listed(image, sizes)}"
    if type(category) is not int or category not in points:
        return f"category_id: {_not_listed(category, points)}"
    if problem := box_problem(annotation["bbox"]):
        return problem
    if not is_number(area, 0, MAX_AREA):
        return f"area: expected a number of pixels from 0 on, got {short(area)}; give that of the mask or box"
    if annotation["iscrowd"] not in (0, 1):
        return f"iscrowd: expected 0 or 1, got {short(annotation['iscrowd'])}; give 1 for a crowd"
    if annotation.get("ignore"):
        return f"ignore: expected 0, got {short(annotation['ignore'])}; Detectron2 takes none, set iscrowd to 1"
    mask = annotation.get("segmentation")
    if mask and (problem := mask_problem(mask, *sizes[image], least)):
        return problem
    if not annotation.get("keypoints"):
        return ""
    if problem := keypoints_problem(annotation["keypoints"], points[category]):
        return problem
    told, visible = annotation.get("num_keypoints"), any(annotation["keypoints"][2::3])
    if type(told) is not int or bool(told) != visible or not 0 <= told <= points[category]:
        return f"num_keypoints: expected how many have a visibility above 0, got {short(told)}; count them"
    return ""


def _not_listed(value: Any, listed: Mapping[Any, object]) -> str:
    """What is wrong with an id that is not in a list, and the mend: it may be there as another kind of value."""
    if type(value) in (int, float, str):
        for other in listed:
            if str(other) == str(value) or (isinstance(value, float) and other == value):
                kinds = {int: "a number", str: "a text (in quotes)", float: "a number with a point"}
                return (
                    f"expected {short(other)}, which is {kinds[type(other)]} in the list, got {short(value)}, "
                    f"{kinds[type(value)]}; write both alike"
                )
    return f"{short(value)} is not listed; add or drop it"


def _files_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: a name that no system has
        return set()

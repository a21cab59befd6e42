"""Pascal VOC annotations to COCO's format; BCCD (blood cells) comes in that form.

A box of VOC is (xmin, ymin, xmax, ymax) in pixels; it becomes (xmin, ymin, xmax - xmin, ymax - ymin). Boxes that count
from 1, as VOC's own do, are moved by a pixel with ``first_pixel=1``: VOC's last pixel belongs to the box. Objects
marked ``difficult`` become crowds, which COCO's evaluation and Detectron2's training leave out as VOC's does.
"""

import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from ..utils.files import require_file
from .folders import atomic_folder, is_free
from .images import SUFFIXES

BCCD_CLASSES = ("RBC", "WBC", "Platelets")
BCCD_SPLITS = ("train", "val", "test")
VOC_SPLITS = ("train", "val", "trainval", "test")


def voc_to_coco(source: str | Path, split: str, classes: Sequence[str], first_pixel: int = 0) -> dict[str, Any]:
    """One split of a folder in VOC's layout as the content of a COCO JSON file. Boxes without area are dropped.

    Args:
        source: the folder with ``Annotations`` and ``JPEGImages``, and ``ImageSets/Main`` where there are splits.
        split: names ``ImageSets/Main/{split}.txt``; ``all`` for all annotations.
        classes: get the category ids 1, 2, ...
        first_pixel: the number of the first row and column.

    Raises:
        InputError: a file is missing, does not parse, or names another class.
    """
    source = Path(source)
    files = {path.stem: path.name for path in sorted((source / "JPEGImages").glob("*")) if _is_image(path)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name in _names(source, split):
        file = require_file(source / "Annotations" / f"{name}.xml", "VOC annotations (XML)")
        tree = _parse(file)
        image_id = len(images) + 1
        width, height = (_number(file, tree, f"size/{side}") for side in ("width", "height"))
        size_and_name = {"file_name": files.get(name, f"{name}.jpg"), "width": int(width), "height": int(height)}
        images.append({"id": image_id, **size_and_name})
        for thing in tree.iter("object"):
            label = thing.findtext("name", "").strip()
            if label not in classes:
                raise InputError(f"{file}: expected one of {', '.join(classes)}, got {label!r}; name the classes")
            left, top, right, bottom = (
                _number(file, thing, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            left, top = left - first_pixel, top - first_pixel
            if right <= left or bottom <= top:
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": classes.index(label) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(thing.findtext("difficult", "0").strip() == "1"),
                }
            )
    return {
        "info": {"description": f"{source.name}, {split}, converted from Pascal VOC"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }


def find_splits(source: str | Path) -> list[str]:
    """Those of train, val, trainval and test that a folder in VOC's layout has; ``all`` where it has none."""
    lists = Path(source) / "ImageSets" / "Main"
    return [split for split in VOC_SPLITS if (lists / f"{split}.txt").is_file()] or ["all"]


def find_classes(source: str | Path, splits: Sequence[str]) -> list[str]:
    """Sorted names of all objects in these splits.

    Raises:
        InputError: a file is missing or does not parse, or there are no objects.
    """
    source, names = Path(source), set()
    for split in splits:
        for name in _names(source, split):
            file = require_file(source / "Annotations" / f"{name}.xml", "VOC annotations (XML)")
            names |= {thing.findtext("name", "").strip() for thing in _parse(file).iter("object")}
    if not names:
        raise InputError(f"{source}: expected objects in its annotations, got none; name another folder")
    return sorted(names)


def convert_voc(
    source: str | Path,
    root: str | Path,
    *,
    splits: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    first_pixel: int = 0,
    progress: Callable[[int], object] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write a folder in VOC's layout in COCO's format, whole or not at all.

    ``root`` gets ``annotations/{split}.json`` and an image folder per split; images are linked where the file system
    can, else copied.

    Args:
        source: with ``Annotations``, ``JPEGImages`` and perhaps ``ImageSets/Main``.
        root: the folder to make.
        splits: by default those that ``find_splits`` finds.
        classes: in the order of their category ids; by default those that ``find_classes`` finds.
        first_pixel: see ``voc_to_coco``.
        progress: called with 1 after each image.

    Returns:
        What was written, by split.

    Raises:
        InputError: ``root`` is not free, or a file of the original is missing or broken.
    """
    source, root = Path(source), Path(root)
    if not is_free(root):
        raise InputError(f"{root}: expected a new folder, got one with files; delete it or name another")
    if not (source / "Annotations").is_dir():
        raise InputError(f"{source}: expected a folder with Annotations and JPEGImages, found none; check the path")
    splits = list(splits or find_splits(source))
    classes = list(classes or find_classes(source, splits))
    contents = {split: voc_to_coco(source, split, classes, first_pixel) for split in splits}
    with atomic_folder(root) as temporary:
        (temporary / "annotations").mkdir()
        for split, content in contents.items():
            (temporary / split).mkdir()
            (temporary / "annotations" / f"{split}.json").write_text(json.dumps(content))
            for image in content["images"]:
                name = image["file_name"]
                _link(require_file(source / "JPEGImages" / name, "an image"), temporary / split / name)
                if progress is not None:
                    progress(1)
    return contents


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _names(source: Path, split: str) -> list[str]:
    """Sorted names of the annotations of a split."""
    if split == "all":
        return sorted(path.stem for path in (source / "Annotations").glob("*.xml"))
    lines = require_file(source / "ImageSets" / "Main" / f"{split}.txt", "the list of a split").read_text().splitlines()
    return sorted(line.strip() for line in lines if line.strip())


def _parse(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # also an encoding that it does not know
        raise InputError(f"{file}: expected XML, got text that does not parse ({error}); get it again") from None


def _number(file: Path, element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path, "").strip()
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{file}: {path}: expected a number, got {text!r}; mend the file") from None

"""Pascal VOC annotations to COCO's format; BCCD (blood cells) comes in that form.

A box of VOC is (xmin, ymin, xmax, ymax) in pixels; it becomes (xmin, ymin, xmax - xmin, ymax - ymin). Boxes that count
from 1, as VOC's own do, are moved by a pixel with ``first_pixel=1``: VOC's last pixel belongs to the box. Objects
marked ``difficult`` become crowds, which COCO's evaluation and Detectron2's training leave out as VOC's does. Corners
that are swapped are put right, a size that is missing is read from the picture; what is dropped or mended is counted.
"""

import json
import math
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from .class_match import fold, nearest
from .decode import UnreadableImage, picture_size
from .folders import atomic_folder, is_free
from .voc_layout import VocFolder

BCCD_CLASSES = ("RBC", "WBC", "Platelets")
BCCD_SPLITS = ("train", "val", "test")
_MOST = 1e6  # pixels of a coordinate
Size = tuple[int, int]  # width, height


def voc_to_coco(
    source: str | Path | VocFolder, split: str, classes: Sequence[str], first_pixel: int = 0
) -> dict[str, Any]:
    """One split of a folder in VOC's layout as the content of a COCO JSON file.

    ``info.counts`` says how many boxes were dropped, for having no area or no part in the picture, and how much was
    mended.

    Args:
        source: the folder with ``Annotations`` and ``JPEGImages``, and ``ImageSets/Main`` where there are splits.
        split: names ``ImageSets/Main/{split}.txt``; ``all`` for all annotations.
        classes: get the category ids 1, 2, ...
        first_pixel: the number of the first row and column.

    Raises:
        InputError: a file is missing, does not parse, has a number that is none, or names another class.
    """
    folder = source if isinstance(source, VocFolder) else VocFolder(source)
    ids = {name: number for number, name in enumerate(classes, start=1)}
    folded = {fold(name): number for name, number in ids.items()}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for name in folder.names(split):
        file = folder.annotations.paths[name]
        tree = _parse(file)
        picture = folder.picture(name, tree.findtext("filename", ""))
        width, height = _size(file, tree, picture, counts)
        image_id = len(images) + 1
        below = picture.relative_to(folder.root / "JPEGImages").as_posix()
        images.append({"id": image_id, "file_name": below, "width": width, "height": height})
        for thing in tree.iter("object"):
            label = thing.findtext("name", "").strip()
            number = ids.get(label) or folded.get(fold(label))
            if number is None:
                hint = nearest(label, classes) or "name the classes"
                raise InputError(f"{file}: expected one of {', '.join(classes)}, got {label!r}; {hint}")
            counts["names of classes in another spelling"] += label not in ids
            left, top, right, bottom = _box(file, thing, first_pixel, counts)
            if right <= left or bottom <= top:
                counts["boxes without area, dropped"] += 1
            elif right <= 0 or bottom <= 0 or left >= width or top >= height:
                counts["boxes outside of their pictures, dropped"] += 1
            else:
                difficult = thing.findtext("difficult", "0").strip().lower() in ("1", "true")
                counts["difficult objects, kept as crowds"] += difficult
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": number,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": int(difficult),
                    }
                )
    return {
        "info": {
            "description": f"{folder.root.name}, {split}, converted from Pascal VOC",
            "counts": {what: count for what, count in counts.items() if count},
        },
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }


def find_classes(source: str | Path | VocFolder, splits: Sequence[str]) -> list[str]:
    """Sorted names of all objects in these splits; of those that differ in case or spaces alone the most frequent.

    Raises:
        InputError: a file is missing or does not parse, or there are no objects.
    """
    folder = source if isinstance(source, VocFolder) else VocFolder(source)
    counts: Counter[str] = Counter()
    for split in splits:
        for name in folder.names(split):
            tree = _parse(folder.annotations.paths[name])
            counts.update(thing.findtext("name", "").strip() for thing in tree.iter("object"))
    if not counts:
        raise InputError(f"{folder.root}: expected objects in its annotations, got none; name another folder")
    spellings = {fold(name): name for name in sorted(counts, key=lambda name: (counts[name], name))}
    return sorted(spellings.values())


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
        splits: by default those that ``VocFolder.splits`` finds.
        classes: in the order of their category ids; by default those that ``find_classes`` finds. Case and spaces of
            the names in the annotations do not matter.
        first_pixel: see ``voc_to_coco``.
        progress: called with 1 after each image.

    Returns:
        What was written, by split.

    Raises:
        InputError: ``root`` is not free, or a file of the original is missing or broken.
    """
    root = Path(root)
    if not is_free(root):
        raise InputError(f"{root}: expected a new folder, got one with files; delete it or name another")
    folder = VocFolder(source)
    splits = list(splits or folder.splits())
    classes = [name.strip() for name in classes or find_classes(folder, splits)]
    contents = {split: voc_to_coco(folder, split, classes, first_pixel) for split in splits}
    with atomic_folder(root) as temporary:
        (temporary / "annotations").mkdir()
        for split, content in contents.items():
            (temporary / split).mkdir()
            (temporary / "annotations" / f"{split}.json").write_text(json.dumps(content))
            for image in content["images"]:
                target = temporary / split / image["file_name"]
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(folder.root / "JPEGImages" / image["file_name"], target)
                if progress is not None:
                    progress(1)
    return contents


def remarks_on(content: dict[str, Any]) -> str:
    """What was dropped or mended in a split, each with its number; empty where nothing was."""
    return ", ".join(f"{count} {what}" for what, count in content["info"]["counts"].items())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _parse(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # also an encoding that it does not know
        raise InputError(
            f"{file}: expected XML, got text that does not parse ({error}); export it again, or take it away"
        ) from None


def _size(file: Path, tree: ElementTree.Element, picture: Path, counts: Counter[str]) -> Size:
    """Width and height of the picture as it is read, which the annotations should say.

    Raises:
        InputError: they say another size, or none of a picture that cannot be read.
    """
    texts = [tree.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    told = tuple(round(number) if 0 < (number := _float(text)) < _MOST else 0 for text in texts)
    try:
        size = picture_size(picture)
    except UnreadableImage as error:
        if not all(told):
            raise InputError(f"{file}: size: expected that of {picture.name}, got none, and {error}") from None
        return told[0], told[1]
    if not all(told):
        counts["sizes read from the picture"] += 1
    elif told != size:
        swapped = (told[1], told[0]) == size
        mend = "if it was annotated unturned: exiftool -Orientation= FILE" if swapped else "put the annotated one there"
        raise InputError(
            f"{file}: size: expected that of {picture.name}, {size[0]} x {size[1]} (turned as its EXIF data say), got "
            f"{told[0]} x {told[1]}; {mend}"
        )
    return size


def _box(
    file: Path, thing: ElementTree.Element, first_pixel: int, counts: Counter[str]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of an object, the first two less ``first_pixel``; swapped corners are put right."""
    xmin, ymin, xmax, ymax = (_number(file, thing, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    counts["boxes with swapped corners, put right"] += xmax < xmin or ymax < ymin
    left, right, top, bottom = *sorted((xmin, xmax)), *sorted((ymin, ymax))
    return left - first_pixel, top - first_pixel, right, bottom


def _number(file: Path, element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path, "").strip()
    number = _float(text)
    if not abs(number) < _MOST:
        raise InputError(f"{file}: {path}: expected a number of pixels, got {text!r}; mend the file")
    return number


def _float(text: str) -> float:
    """The number of a text; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan

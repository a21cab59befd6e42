"""Pascal VOC annotations to COCO's format, and BCCD (blood cells), which comes in that form.

A box of VOC is (xmin, ymin, xmax, ymax) in pixels; it becomes (xmin, ymin, xmax - xmin, ymax - ymin). BCCD's boxes
touch 0, so no pixel is subtracted, as it would be for VOC's own boxes, which count from 1.
"""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import require_file
from .folders import atomic_folder, is_free

BCCD_CLASSES = ("RBC", "WBC", "Platelets")
BCCD_SPLITS = ("train", "val", "test")


def voc_to_coco(source: str | Path, split: str, classes: Sequence[str]) -> dict[str, Any]:
    """One split of a folder in VOC's layout as the content of a COCO JSON file. Boxes without area are dropped.

    Args:
        source: the folder with ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: names ``ImageSets/Main/{split}.txt``.
        classes: get the category ids 1, 2, ...

    Raises:
        InputError: a file is missing, does not parse, or names another class.
    """
    source = Path(source)
    names = require_file(source / "ImageSets" / "Main" / f"{split}.txt", "the list of a split").read_text().split()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name in sorted(names):
        file = require_file(source / "Annotations" / f"{name}.xml", "VOC annotations (XML)")
        try:
            tree = ElementTree.parse(file).getroot()
        except ElementTree.ParseError as error:
            raise InputError(f"{file}: expected XML, got text that does not parse ({error}); get it again") from None
        image_id = len(images) + 1
        width, height = (_number(file, tree, f"size/{side}") for side in ("width", "height"))
        images.append({"id": image_id, "file_name": f"{name}.jpg", "width": int(width), "height": int(height)})
        for thing in tree.iter("object"):
            label = thing.findtext("name", "").strip()
            if label not in classes:
                raise InputError(f"{file}: expected one of {', '.join(classes)}, got {label!r}; name the classes")
            left, top, right, bottom = (
                _number(file, thing, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            if right <= left or bottom <= top:
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": classes.index(label) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": f"{source.name}, {split}, converted from Pascal VOC"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }


def convert_bccd(source: str | Path, root: str | Path, *, progress: Callable[[int], object] | None = None) -> Path:
    """Write BCCD in COCO's format, whole or not at all: ``annotations/{split}.json`` and an image folder per split.

    Args:
        source: the folder ``BCCD`` of the original, with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        root: the folder to make.
        progress: called with 1 after each image.

    Raises:
        InputError: ``root`` is not free, or a file of the original is missing or broken.
    """
    source, root = Path(source), Path(root)
    if not is_free(root):
        raise InputError(f"{root}: expected a new folder, got one with files; delete it or name another")
    contents = {split: voc_to_coco(source, split, BCCD_CLASSES) for split in BCCD_SPLITS}
    with atomic_folder(root) as temporary:
        (temporary / "annotations").mkdir()
        for split, content in contents.items():
            (temporary / split).mkdir()
            (temporary / "annotations" / f"{split}.json").write_text(json.dumps(content))
            for image in content["images"]:
                name = image["file_name"]
                shutil.copyfile(require_file(source / "JPEGImages" / name, "an image"), temporary / split / name)
                if progress is not None:
                    progress(1)
    return root


def _number(file: Path, element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path, "").strip()
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{file}: {path}: expected a number, got {text!r}; mend the file") from None

"""COCO 2017 as Detectron2 expects it: what is there of it, and the archives of the rest."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..utils.download import Archive

HOST = "http://images.cocodataset.org"
ANNOTATIONS = Archive(
    f"{HOST}/annotations/annotations_trainval2017.zip", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c"
)
IMAGES = {
    "train": Archive(f"{HOST}/zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    "val": Archive(f"{HOST}/zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
}
COUNTS = {"train": 118_287, "val": 5_000}


@dataclass(frozen=True)
class Part:
    """Images of a split, or a file of annotations: its name, and what is wrong with it; empty if it is whole."""

    name: str
    problem: str


def check_coco(root: str | Path, splits: tuple[str, ...] = ("train", "val")) -> list[Part]:
    """What there is of COCO 2017 below a folder: annotations are read, and each image that they list is looked for.

    Args:
        root: with ``annotations``, ``train2017`` and ``val2017``.
        splits: of interest.
    """
    root, parts = Path(root), []
    for split in splits:
        folder, count = root / f"{split}2017", COUNTS[split]
        names: set[str] = set()
        for kind in ("instances", "person_keypoints"):
            file = root / "annotations" / f"{kind}_{split}2017.json"
            listed, problem = _images_of(file)
            if not problem and len(listed) != count:
                problem = f"{len(listed)} of {count} images"
            names |= listed
            parts.append(Part(f"annotations/{file.name}", problem))
        there = {path.name for path in folder.glob("*.jpg")} if folder.is_dir() else set()
        missing = sorted(names - there) if names else ["?"] * max(0, count - len(there))
        problem = f"{len(missing)} of {count} images are missing, first {missing[0]}" if missing else ""
        parts.append(Part(folder.name, problem))
    return parts


def _images_of(file: Path) -> tuple[set[str], str]:
    """Names of the images that a file of annotations lists, and what is wrong with it."""
    if not file.is_file():
        return set(), "missing"
    try:
        content = json.loads(file.read_bytes())
        return {image["file_name"] for image in content["images"]}, "" if content["annotations"] else "no annotations"
    except (ValueError, KeyError, TypeError, RecursionError):
        return set(), "damaged"


def archives_for(parts: list[Part]) -> list[Archive]:
    """The archives that hold what is not whole."""
    broken = [part.name for part in parts if part.problem]
    needed = [ANNOTATIONS] if any(name.startswith("annotations/") for name in broken) else []
    return needed + [IMAGES[split] for split in IMAGES if f"{split}2017" in broken]

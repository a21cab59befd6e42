"""COCO 2017 as Detectron2 expects it: what is there of it, and the archives of the rest."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .coco import read_coco
from .download import Archive

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


def check_coco(root: str | Path, splits: tuple[str, ...] = ("train", "val"), deep: bool = False) -> list[Part]:
    """What there is of COCO 2017 below a folder.

    Args:
        root: with ``annotations``, ``train2017`` and ``val2017``.
        splits: of interest.
        deep: read the annotations, and look for each image that they list.
    """
    root, found = Path(root), []
    for split in splits:
        images = root / f"{split}2017"
        count = sum(1 for _ in images.glob("*.jpg")) if images.is_dir() else 0
        found.append(Part(images.name, "" if count == COUNTS[split] else f"{count} of {COUNTS[split]} images"))
        for kind in ("instances", "person_keypoints"):
            file = root / "annotations" / f"{kind}_{split}2017.json"
            problem = "" if file.is_file() else "missing"
            found.append(Part(f"annotations/{file.name}", problem or (_problem_of(file, images) if deep else "")))
    return found


def _problem_of(file: Path, images: Path) -> str:
    try:
        content = read_coco(file, images)
    except InputError as error:
        return str(error)
    return "" if content["annotations"] else "no annotations"


def archives_for(parts: list[Part]) -> list[Archive]:
    """The archives that hold what is not whole."""
    broken = [part.name for part in parts if part.problem]
    needed = [ANNOTATIONS] if any(name.startswith("annotations/") for name in broken) else []
    return needed + [IMAGES[split] for split in IMAGES if f"{split}2017" in broken]

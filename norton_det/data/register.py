"""Detectron2 data sets: folders in COCO's format, the generated shapes, BCCD; and a check before a run starts.

Detectron2 finds its own ``coco_2017_*`` below the folder that the environment variable DETECTRON2_DATASETS named when
Detectron2 was imported (``datasets`` by default); this module looks for ``norton_shapes`` and ``bccd`` there, too.
Detectron2 is imported by the functions, not with the module.
"""

import contextlib
import difflib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from .coco import check_coco_file, read_coco
from .generate import annotation_file, is_complete
from .keypoints import keypoint_fields

GENERATED_DATASETS = {
    "norton_shapes_train": ("instances", "train2017"),
    "norton_shapes_val": ("instances", "val2017"),
    "norton_shapes_keypoints_train": ("person_keypoints", "train2017"),
    "norton_shapes_keypoints_val": ("person_keypoints", "val2017"),
}
BCCD_DATASETS = {f"bccd_{split}": split for split in ("train", "val", "test")}

_TOLD: set[str] = set()  # data sets whose remarks were told
logger = logging.getLogger(__name__)

# Where a data set of Detectron2 keeps its files: COCO, LVIS and panoptic, Pascal VOC, Cityscapes.
_PATHS = ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root", "dirname", "image_dir", "gt_dir")


def resolve_datasets_root() -> Path:
    """The folder that DETECTRON2_DATASETS names, ``datasets`` by default."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))


def resolve_coco_root() -> Path:
    """Where COCO 2017 belongs: the folder with ``train2017``, ``val2017`` and ``annotations``."""
    return resolve_datasets_root() / "coco"


def register_coco_folder(name: str, annotations: str | Path, image_root: str | Path) -> None:
    """Register a data set in COCO's format with Detectron2, to be trained on and evaluated by COCO's AP.

    A category with keypoints gives the data set their names, limbs, the pairs of left and right that a horizontal flip
    swaps (``keypoints.find_sides``), and ``sigmas`` where it has some. Registering the same files again does nothing.

    Args:
        name: for ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        annotations: the JSON file.
        image_root: the folder of its images.

    Raises:
        InputError: a file is missing or not COCO's, the categories disagree on keypoints, or the name is taken.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    if not isinstance(name, str) or not name:
        raise InputError(f"name: expected the data set's name, got {name!r}; give one such as my_data_train")
    json_file, folder = Path(annotations).resolve(), Path(image_root).resolve()
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        known = [metadata.get("json_file"), metadata.get("image_root")]
        if [path and Path(path).resolve() for path in known] == [json_file, folder]:
            return
        raise InputError(f"{name}: expected a new name, it is registered with {known[0]}; choose another name")
    content = read_coco(json_file, folder)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    fields: dict[str, Any] = {
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(categories)},
        **keypoint_fields(json_file, categories),
    }
    MetadataCatalog.pop(name, None)  # left by a data set of this name that was removed
    MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(folder), evaluator_type="coco", **fields)
    DatasetCatalog.register(name, lambda: load_coco_json(str(json_file), str(folder), name))


def register_entries(entries: Iterable[str]) -> None:
    """Register data sets as the tools' flags name them: ``NAME=JSON:IMAGES`` each, see ``register_coco_folder``.

    Raises:
        InputError: another form, or what ``register_coco_folder`` raises.
    """
    for entry in entries:
        name, _, paths = entry.partition("=")
        annotations, _, images = paths.rpartition(":")
        if not (name and annotations and images):
            raise InputError(f"--register: expected NAME=JSON:IMAGES, got {entry!r}; write mine=ann/train.json:images")
        register_coco_folder(name, annotations, images)


def register_generated(root: str | Path) -> list[str]:
    """Register the data set that ``generate_dataset`` wrote, under the names of ``GENERATED_DATASETS``.

    Returns:
        The names.

    Raises:
        InputError: the folder holds no complete generated data set, or the names stand for another folder.
    """
    if not is_complete(root):
        raise InputError(
            f"{root}: expected a complete generated data set, found none; run: norton-det prepare generated {root}"
        )
    for name, (kind, split) in GENERATED_DATASETS.items():
        register_coco_folder(name, annotation_file(root, kind, split), Path(root) / split)
    return list(GENERATED_DATASETS)


def register_bccd(root: str | Path) -> list[str]:
    """Register the blood cells of BCCD, under the names of ``BCCD_DATASETS``.

    Args:
        root: the folder with ``annotations/{train,val,test}.json`` and the folders ``train``, ``val``, ``test``.

    Returns:
        The names.

    Raises:
        InputError: a file is missing or not COCO's, or the names stand for another folder.
    """
    for name, split in BCCD_DATASETS.items():
        register_coco_folder(name, Path(root) / "annotations" / f"{split}.json", Path(root) / split)
    return list(BCCD_DATASETS)


def class_names(name: str) -> tuple[str, ...]:
    """Names of a data set's classes by label; empty where they are not known. Its files need not be there."""
    from detectron2.data import MetadataCatalog

    if name in GENERATED_DATASETS:
        from .scene import CLASSES

        return CLASSES[:1] if "keypoints" in name else CLASSES
    with contextlib.suppress(InputError):  # data that are not here
        _find_dataset(name)
    return tuple(getattr(MetadataCatalog.get(name), "thing_classes", ()))


def check_datasets(names: Iterable[str], *, masks: bool = False, keypoints: int = 0) -> None:
    """Refuse, before a model is built, data sets that are unknown to Detectron2, whose files are not there, or, in
    COCO's format, whose annotations would crash a run or make its result wrong.

    The generated shapes and BCCD are registered on the way, from below ``resolve_datasets_root()``. A file is read once
    in a process, until it changes. COCO's test sets, which have no annotations, are not looked into.

    Args:
        names: of ``DATASETS.TRAIN`` and ``DATASETS.TEST``; one name alone will do.
        masks: each annotation has to have a mask, as the evaluation of a Mask R-CNN takes for granted.
        keypoints: each annotation has to have so many, as a Keypoint R-CNN takes for granted; 0: they do not matter.

    Raises:
        InputError: names the data set or the file, what was looked at, and the mend.
    """
    from detectron2.data import MetadataCatalog

    for name in [names] if isinstance(names, str) else names:
        _find_dataset(name)
        metadata = MetadataCatalog.get(name)
        file = metadata.get("json_file")
        if metadata.get("evaluator_type") != "coco" or not file or "://" in file or "image_info" in Path(file).name:
            continue
        if "minival" in Path(file).name:  # of COCO 2014; Detectron2 knows of the ids that are there twice
            continue
        # COCO's own, from which Detectron2 leaves such polygons out
        official = name.startswith(("coco_2017", "keypoints_coco_2017"))
        checked = check_coco_file(file, metadata.get("image_root"), short_polygons=official)
        if checked.remarks and name not in _TOLD:
            _TOLD.add(name)
            logger.warning("%s: %d images, %d objects; %s", name, checked.images, checked.objects, checked.remarks)
        if masks and checked.no_mask is not None:
            raise InputError(
                f"{file}: annotation {checked.no_mask}: segmentation: expected a mask, found none; add it, or set "
                "MODEL.MASK_ON False"
            )
        if keypoints and checked.no_keypoints is not None:
            raise InputError(
                f"{file}: annotation {checked.no_keypoints}: keypoints: expected {keypoints}, found none; add them, or "
                "set MODEL.KEYPOINT_ON False"
            )
        if keypoints and checked.keypoints != keypoints:
            raise InputError(
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS: expected {checked.keypoints}, those of {name}, got "
                f"{keypoints}; set it to {checked.keypoints}"
            )


def _find_dataset(name: str) -> None:
    """Refuse a data set that is unknown, or whose files are not there; it is registered where this package knows it."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if name not in DatasetCatalog and name in GENERATED_DATASETS:
        register_generated(resolve_datasets_root() / "norton_shapes")
    if name not in DatasetCatalog and name in BCCD_DATASETS:
        register_bccd(resolve_datasets_root() / "bccd")
    if name not in DatasetCatalog:
        known = [*DatasetCatalog, *GENERATED_DATASETS, *BCCD_DATASETS]
        close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = (
            f"did you mean {', '.join(close)}?"
            if close
            else "add it with --register NAME=JSON:IMAGES or register_coco_folder"
        )
        raise InputError(f"data set {name!r}: expected a registered name; {hint}")
    metadata = MetadataCatalog.get(name)
    for field in _PATHS:
        path = metadata.get(field)
        if path and "://" not in path and not Path(path).exists():
            raise InputError(f"data set {name}: expected {path}, found none; {_mend(name)}")


def _mend(name: str) -> str:
    if name in GENERATED_DATASETS:
        return "run: norton-det prepare generated"
    if "coco_" in name:
        return (
            f"put COCO at {resolve_coco_root()}, set DETECTRON2_DATASETS to the folder that holds coco, run: "
            "norton-det prepare coco, or name other data (DATASETS.TRAIN, DATASETS.TEST)"
        )
    return "check the path, or set DETECTRON2_DATASETS (datasets/README.md says how)"

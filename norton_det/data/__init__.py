"""Data sets: COCO-format folders registered with Detectron2, and a generated one to learn and test on.

OpenCV and Detectron2 are imported when a function needs them, not with this package.
"""

from .coco_units import convert_boxes
from .generate import generate_dataset
from .register import (
    check_datasets,
    register_bccd,
    register_coco_folder,
    register_generated,
    resolve_coco_root,
    resolve_datasets_root,
)

__all__ = [
    "check_datasets",
    "convert_boxes",
    "generate_dataset",
    "register_bccd",
    "register_coco_folder",
    "register_generated",
    "resolve_coco_root",
    "resolve_datasets_root",
]

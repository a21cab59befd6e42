"""Convert BCCD (blood cells, Pascal VOC XML) to COCO's format, as register_bccd and the configs expect it."""

import argparse

from ...data import resolve_datasets_root
from ..parser import command_parser

EXAMPLES = """
  norton-det prepare bccd BCCD_Dataset/BCCD                    to where Detectron2 looks for data
  norton-det prepare bccd BCCD_Dataset/BCCD datasets/bccd

Then: DATASETS.TRAIN "('bccd_train',)" DATASETS.TEST "('bccd_val',)" MODEL.ROI_HEADS.NUM_CLASSES 3
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("source", help="folder with Annotations, ImageSets and JPEGImages")
    parser.add_argument("root", nargs="?", default=str(resolve_datasets_root() / "bccd"), help="folder to write")
    return parser

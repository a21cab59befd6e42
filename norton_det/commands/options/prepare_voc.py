"""Convert a folder in Pascal VOC's layout (Annotations, JPEGImages, ImageSets/Main) to COCO's format.

Splits are those of ImageSets/Main; without such lists all images are one, called "all"."""

import argparse

from ..parser import command_parser

EXAMPLES = """
  norton-det prepare voc VOCdevkit/VOC2012 datasets/voc2012 --first-pixel 1
  norton-det prepare voc parts datasets/parts --splits train,test --classes bolt,nut

Then: norton-det train --register voc_train=datasets/voc2012/annotations/train.json:datasets/voc2012/train ...
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("source", help="folder with Annotations and JPEGImages")
    parser.add_argument("root", help="folder to write")
    parser.add_argument(
        "--splits", metavar="A,B", help="lists in ImageSets/Main; by default all that are not of one class"
    )
    parser.add_argument("--classes", metavar="A,B", help="in the order of their category ids; by default all, sorted")
    parser.add_argument("--first-pixel", type=int, choices=(0, 1), default=0, help="VOC's own boxes count from 1")
    return parser

"""Top-1 and Top-5 accuracy of a classifier on an ImageNet-style folder, one sub-folder per class.

Folders of a head of 1000 classes are matched by their wnid (n01440764, ...), so a part of ImageNet's classes will do;
with another head the sorted folders are its classes, or --classes lists them."""

import argparse

from ..parser import add_image_options, command_parser

EXAMPLES = """
  norton-det evaluate --weights output/resnet50_norton-78.safetensors --data imagenet/val
  norton-det evaluate --weights resnet50.pth --data imagenette/val --image-size 128 --resize 160 --json
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="dense or compressed, or torchvision://resnet50"
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="a folder with one folder per class")
    parser.add_argument("--classes", metavar="FILE", help="the head's classes in order, one folder name a line")
    add_image_options(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--fuse", action="store_true", help="evaluate the deploy form")
    parser.add_argument("--device", help="such as cpu; by default cuda where there is one")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser

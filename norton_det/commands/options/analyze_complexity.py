"""MACs and parameters: the published complexity tables beside this package's count, or one network in detail.

Without a network it prints both tables of the paper. Nothing is computed, so it takes seconds."""

import argparse

from ...models.architecture import ARCHITECTURES
from ...utils.options import DETECTORS
from ..parser import command_parser

EXAMPLES = """
  norton-det complexity                                       the published tables, recounted
  norton-det complexity --markdown                            the same, for a document
  norton-det complexity --preset norton-64 --depth 1
  norton-det complexity --rank 2 --ratios "[0.]+[0.3]*19" --detector mask --detections 20
  norton-det complexity --preset norton-78 --arch resnet18
  norton-det complexity --weights norton.safetensors --input-size 160 160 --json
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", metavar="FILE", help="norton checkpoint, or a detector of norton_det.tv")
    source.add_argument("--preset", "--spec", metavar="NAME", help="a level, such as norton-78, or dense")
    source.add_argument(
        "--ratios", metavar="LIST", help='pruning ratios such as "[0.]+[0.28]*19"; none with --rank alone'
    )
    parser.add_argument(
        "--arch", choices=ARCHITECTURES, help="ResNet of --preset, --rank and --ratios; resnet50 without"
    )
    parser.add_argument("--rank", metavar="R", help="CP rank; 1 with --ratios alone, none for dense")
    parser.add_argument("--detector", choices=DETECTORS, help="count this R-CNN on the network instead of a classifier")
    parser.add_argument(
        "--input-size", type=int, nargs=2, metavar=("H", "W"), help="by default 224 224, detectors 800 800"
    )
    parser.add_argument("--proposals", type=int, default=1000, metavar="N", help="regions of the box head")
    parser.add_argument(
        "--detections", type=int, default=100, metavar="N", help="regions of the mask and keypoint heads"
    )
    parser.add_argument("--depth", type=int, default=2, metavar="N", help="levels of modules to print")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print the published tables as Markdown")
    return parser

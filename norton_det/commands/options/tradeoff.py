"""AP against milliseconds: a trained Detectron2 detector compressed to several levels and ranks, each evaluated and
timed, dense beside them. Writes tradeoff.csv, .md and .png; what was cut off goes on where it stopped.

A case is PRESET, or PRESET,neck=R,head=R,box=R. Compressed detectors are fitted to the dense one on unlabelled pictures
and not fine-tuned; trained ones are added by name."""

import argparse

from ...utils.options import FORMS
from ..parser import command_parser

EXAMPLES = """
  norton-det tradeoff --config bccd_dense_faster_rcnn.yaml --weights output/bccd_dense_faster_rcnn/model_final.pth \\
      --calibrate datasets/bccd/train --case norton-43 --case norton-78,neck=2 --case norton-78,neck=1,box=64 \\
      --trained "norton-78 fine-tuned=output/bccd_norton_faster_rcnn/model_final.pth" --output output/tradeoff
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--config-file", "--config", required=True, metavar="FILE", help="of the dense detector")
    parser.add_argument("--weights", required=True, metavar="FILE", help="the trained dense detector")
    parser.add_argument("--calibrate", required=True, metavar="DIR", help="unlabelled pictures to fit to")
    parser.add_argument("--images", type=int, default=64, help="how many of them")
    parser.add_argument(
        "--case", action="append", default=[], metavar="CASE", help="what to compress to; may be repeated"
    )
    parser.add_argument("--trained", action="append", default=[], metavar="NAME=FILE", help="a trained one; repeat")
    parser.add_argument("--form", default="openvino", choices=FORMS, help="what is timed")
    parser.add_argument("--size", type=int, nargs=2, default=[800, 800], metavar=("H", "W"), help="of the timed frame")
    parser.add_argument("--rounds", type=int, default=10, help="timed frames of each")
    parser.add_argument("--output", default="output/tradeoff", metavar="DIR", help="where table, plot and detectors go")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return parser

"""The published levels and the dense baselines: configs, MACs, parameters, published accuracy, and weights to download.

A name is LEVEL/NETWORK. Weights are kept in the folder that NORTON_DET_ZOO names, else in torch's cache. zoo://NAME
stands for them as --weights of compress, evaluate, finetune, export, benchmark, demo and serve, and as MODEL.WEIGHTS
that a training starts from."""

import argparse

from ..parser import command_parser

EXAMPLES = """
  norton-det zoo                                           all of it
  norton-det zoo norton-78/faster_rcnn                     one in full
  norton-det zoo --download dense/mask_rcnn                prints where the file is
  norton-det zoo --verify resnet50-0676ba61.pth            is it what was published?
  norton-det compress --weights zoo://dense/faster_rcnn --preset norton-78 --neck-rank 1 --output small.safetensors
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("name", nargs="?", metavar="NAME", help="show this one in full")
    what.add_argument("--download", metavar="NAME", help="have its weights here, and print the file's path")
    what.add_argument("--verify", metavar="FILE", help="hold a file against the checksum of the zoo's of that name")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser

"""Check COCO 2017 where Detectron2 looks for it, and download what is missing (20 GB; 1 GB with --val-only).

Downloads go on where they stopped, are checked by their MD5, and are kept in ROOT/archives unless --clean is given."""

import argparse

from ...data import resolve_coco_root
from ..parser import command_parser

EXAMPLES = """
  norton-det prepare coco --check                    # what is there, and what is not
  norton-det prepare coco --val-only                 # enough to evaluate
  norton-det prepare coco /data/coco --clean         # then: export DETECTRON2_DATASETS=/data
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("root", nargs="?", default=str(resolve_coco_root()), help="folder of COCO 2017")
    parser.add_argument("--check", action="store_true", help="download nothing")
    parser.add_argument("--val-only", action="store_true", help="leave the training images out")
    parser.add_argument("--clean", action="store_true", help="delete the archives at the end")
    return parser

"""Write the generated data set (COCO format: boxes, masks, crowds, keypoints). Nothing is downloaded."""

import argparse

from ...data import resolve_datasets_root
from ..parser import command_parser

EXAMPLES = """
  norton-det prepare generated                                 500 images where Detectron2 looks for data
  norton-det prepare generated datasets/shapes_2000 --train 2000 --val 200 --seed 3
  norton-det prepare generated datasets/small --train 40 --val 20 --height 160 --width 160

The same parameters give the same files. A folder that already holds them is left as it is; any other is refused.
Then: DATASETS.TRAIN "('norton_shapes_train',)" DATASETS.TEST "('norton_shapes_val',)", or norton_shapes_keypoints_*.
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "root", nargs="?", default=str(resolve_datasets_root() / "norton_shapes"), help="folder to write"
    )
    parser.add_argument("--train", type=int, default=400, help="training images")
    parser.add_argument("--val", type=int, default=100, help="validation images")
    parser.add_argument("--height", type=int, default=192, help="pixels")
    parser.add_argument("--width", type=int, default=256, help="pixels")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same data")
    parser.add_argument("--smallest", type=int, default=0, help="least size of a shape in pixels: an easier set")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser

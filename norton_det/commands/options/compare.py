"""Train detectors under the same budget, dense and compressed, over seeds, and print the published table's columns.

Each --config is a row; it is trained by norton-det train with seeds 1, 2, ... into OUTPUT/NAME_SEED and evaluated on
DATASETS.TEST. What was cut off goes on where it stopped. Trained detectors are added by --load, as one run each."""

import argparse

from ..parser import add_configs, command_parser

EXAMPLES = """
  norton-det compare --config bccd_dense_faster_rcnn.yaml --config bccd_norton_faster_rcnn.yaml --seeds 2 \\
      --output output/compare MODEL.WEIGHTS resnet50.pth
  norton-det compare --config dense_faster_rcnn.yaml --config norton_faster_rcnn.yaml --num-gpus 8 --seeds 1
  norton-det compare --config dense_faster_rcnn.yaml --load "norton-78=output/norton_faster_rcnn/model_final.pth"
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    add_configs(parser, "a row; the first is the baseline", required=True)
    parser.add_argument("--load", action="append", default=[], metavar="NAME=FILE", help="a trained detector; repeat")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each config")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of each run, one GPU each, or on CPUs")
    parser.add_argument(
        "--register", action="append", default=[], metavar="NAME=JSON:IMAGES", help="a data set of yours"
    )
    parser.add_argument("--size", type=int, nargs=2, default=[800, 800], metavar=("H", "W"), help="that MACs are of")
    parser.add_argument("--output", default="output/compare", metavar="DIR", help="of tables, plot and runs")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to all configs")
    return parser

"""Pictures of predictions beside the ground truth, from a results file; plots of AP against MACs and latency of all
detectors in a folder of results.

Predictions are COCO's result format: what norton-det train --eval-only leaves in OUTPUT_DIR/inference, and
norton-det evaluate-detector in --output. --plot reads the --json of norton-det evaluate-detector (with MACs and
milliseconds), and compare.csv and tradeoff.csv of those tools."""

import argparse

from ..parser import command_parser

EXAMPLES = """
  norton-det visualize --predictions output/norton_faster_rcnn/inference/coco_instances_results.json \\
      --dataset coco_2017_val --output pictures
  norton-det visualize --predictions found/coco_instances_results.json --dataset mine_val \\
      --register mine_val=data/val.json:data/images --output pictures --images 50 --confidence-threshold 0.3
  norton-det visualize --plot output/results --output plots
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--predictions", metavar="FILE", help="in COCO's result format")
    parser.add_argument("--dataset", metavar="NAME", help="that they are of, such as coco_2017_val")
    parser.add_argument(
        "--register", action="append", default=[], metavar="NAME=JSON:IMAGES", help="a data set of yours"
    )
    parser.add_argument("--images", type=int, default=20, metavar="N", help="how many, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, metavar="P", help="least score that is shown"
    )
    parser.add_argument("--plot", action="append", default=[], metavar="DIR", help="a folder of results; repeat")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for pictures and plots")
    return parser

"""Pictures of predictions beside the ground truth, from a results file; plots of AP against MACs and latency of all
detectors in a folder of results.

Predictions are COCO's result format: what norton-det train --eval-only leaves in OUTPUT_DIR/inference, and
norton-det evaluate-detector in --output. --plot reads the --json of norton-det evaluate-detector (with MACs and
milliseconds), and compare.csv and tradeoff.csv of those tools."""

import argparse

from ..parser import parser

EXAMPLES = """
  norton-det visualize --predictions output/norton_faster_rcnn/inference/coco_instances_results.json \\
      --dataset coco_2017_val --output pictures
  norton-det visualize --predictions found/coco_instances_results.json --dataset mine_val \\
      --register mine_val=data/val.json:data/images --output pictures --images 50 --confidence-threshold 0.3
  norton-det visualize --plot output/results --output plots
"""


def make_parser() -> argparse.ArgumentParser:
    own = parser(__doc__, EXAMPLES)
    own.add_argument("--predictions", metavar="FILE", help="in COCO's result format")
    own.add_argument("--dataset", metavar="NAME", help="that they are of, such as coco_2017_val")
    own.add_argument("--register", action="append", default=[], metavar="NAME=JSON:IMAGES", help="a data set of yours")
    own.add_argument("--images", type=int, default=20, metavar="N", help="how many, drawn at random")
    own.add_argument("--seed", type=int, default=0, help="of the draw")
    own.add_argument("--confidence-threshold", type=float, default=0.5, metavar="P", help="least score that is shown")
    own.add_argument("--plot", action="append", default=[], metavar="DIR", help="a folder of results; repeat")
    own.add_argument("--output", required=True, metavar="DIR", help="folder for pictures and plots")
    return own

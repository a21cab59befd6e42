"""Latency, FPS and memory of compressed detectors beside their dense baselines, in every form they run in.

A frame is one picture end to end: normalisation, backbone, proposals, heads, NMS, results in its pixels. All rows of a
table take turns, frame by frame, so that they meet the same noise. Without weights the detectors are random: networks
cost the same, the number of detections does not. "vs eager" is against the dense detector as it is trained, "vs dense"
against the dense one in the same form."""

import argparse

from ...utils.options import FORMS
from ..parser import add_configs, command_parser

EXAMPLES = """
  norton-det benchmark --config norton_faster_rcnn.yaml                        # backbone compressed, as in the paper
  norton-det benchmark --config norton_faster_rcnn.yaml --whole --markdown speed.md --plot speed.png
  norton-det benchmark --config norton_faster_rcnn.yaml --config norton_mask_rcnn.yaml --whole --parts --memory
  norton-det benchmark --config norton_faster_rcnn.yaml --weights output/norton/model_final.pth \\
      --baseline-weights output/dense/model_final.pth --image street.jpg --json speed.json
  norton-det benchmark --weights small.safetensors --baseline-weights dense.safetensors --forms eager,openvino
  norton-det benchmark --config norton_faster_rcnn.yaml --whole --train-step --size 320 320
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    add_configs(parser, "of a compressed detector; repeat")
    parser.add_argument("--weights", default="", metavar="FILE", help="trained weights; torchvision's need no config")
    parser.add_argument("--baseline", metavar="FILE", help="config to compare with; by default the same, dense")
    parser.add_argument("--baseline-weights", default="", metavar="FILE", help="the baseline's trained weights")
    parser.add_argument("--whole", action="store_true", help="factor neck and heads too: ranks 1, 1 and 128")
    parser.add_argument(
        "--forms", metavar="FORM,FORM", help=f"some of {', '.join(FORMS)}; by default all that can be had"
    )
    parser.add_argument("--image", metavar="FILE", help="picture to use; by default noise")
    parser.add_argument(
        "--size", type=int, nargs=2, default=[800, 800], metavar=("H", "W"), help="of the network's input"
    )
    parser.add_argument("--calibrate", metavar="DIR", help="32 pictures of it for int8; by default the picture alone")
    parser.add_argument("--rounds", type=int, default=10, help="measured frames of each")
    parser.add_argument("--threads", type=int, help="CPU threads; by default all cores")
    parser.add_argument("--parts", action="store_true", help="the time of each part, too")
    parser.add_argument(
        "--memory", action="store_true", help="the peak memory of each, too: each in a process of its own"
    )
    parser.add_argument("--train-step", action="store_true", help="a step of training (2 images), too")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there")
    parser.add_argument("--plot", metavar="FILE", help="draw the latencies of the first table there (PNG)")
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "FORM"), help=argparse.SUPPRESS)  # a child of --memory
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to both configs")
    return parser

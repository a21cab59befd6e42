"""Latency, FPS and memory of compressed detectors beside their dense baselines, in every form they run in.

A frame is one picture end to end: normalisation, backbone, proposals, heads, NMS, results in its pixels. All rows of a
table take turns, frame by frame, so that they meet the same noise. Without weights the detectors are random: networks
cost the same, the number of detections does not. "vs eager" is against the dense detector as it is trained, "vs dense"
against the dense one in the same form."""

import argparse

from ...utils.options import FORMS
from ..parser import add_configs, parser

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
    own = parser(__doc__, EXAMPLES)
    add_configs(own, "of a compressed detector; repeat")
    own.add_argument("--weights", default="", metavar="FILE", help="trained weights; torchvision's need no config")
    own.add_argument("--baseline", metavar="FILE", help="config to compare with; by default the same, dense")
    own.add_argument("--baseline-weights", default="", metavar="FILE", help="the baseline's trained weights")
    own.add_argument("--whole", action="store_true", help="factor neck and heads too: ranks 1, 1 and 128")
    own.add_argument("--forms", metavar="FORM,FORM", help=f"some of {', '.join(FORMS)}; by default all that can be had")
    own.add_argument("--image", metavar="FILE", help="picture to use; by default noise")
    own.add_argument("--size", type=int, nargs=2, default=[800, 800], metavar=("H", "W"), help="of the network's input")
    own.add_argument("--calibrate", metavar="DIR", help="32 pictures of it for int8; by default the picture alone")
    own.add_argument("--rounds", type=int, default=10, help="measured frames of each")
    own.add_argument("--threads", type=int, help="CPU threads; by default all cores")
    own.add_argument("--parts", action="store_true", help="the time of each part, too")
    own.add_argument("--memory", action="store_true", help="the peak memory of each, too: each in a process of its own")
    own.add_argument("--train-step", action="store_true", help="a step of training (2 images), too")
    own.add_argument("--json", metavar="FILE", help="write the figures there")
    own.add_argument("--markdown", metavar="FILE", help="write the tables there")
    own.add_argument("--plot", metavar="FILE", help="draw the latencies of the first table there (PNG)")
    own.add_argument("--only", nargs=2, metavar=("MODEL", "FORM"), help=argparse.SUPPRESS)  # a child of --memory
    own.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to both configs")
    return own

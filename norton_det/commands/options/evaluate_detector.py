"""COCO AP of a detector in any form it runs in: a file of norton-det export (.xml, .onnx), or a detector of either
stack in PyTorch, dense or compressed."""

import argparse

from ..parser import command_parser

EXAMPLES = """
  norton-det evaluate-detector --weights detector.xml --dataset coco_2017_val
  norton-det evaluate-detector --weights detector.xml --precision bf16 --dataset bccd_test
  norton-det evaluate-detector --weights detector.safetensors --dataset coco_2017_val    # of torchvision, in PyTorch
  norton-det evaluate-detector --config norton_faster_rcnn.yaml --weights model_final.pth --dataset mine_val \\
      --register mine_val=data/val.json:data/images --json ap.json
"""


def sigmas(text: str) -> tuple[float, ...]:
    """Numbers above 0, of a list with commas, also as a config has it."""
    numbers = tuple(float(word) for word in text.strip("()[] ").split(",") if word.strip())
    if not numbers or not all(0 < number < 100 for number in numbers):
        raise ValueError(text)
    return numbers


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--weights", required=True, metavar="FILE", help=".xml, .onnx, or a detector's weights")
    parser.add_argument("--config-file", "--config", metavar="FILE", help="of a Detectron2 detector in PyTorch")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="to evaluate on, such as coco_2017_val")
    parser.add_argument(
        "--register", action="append", default=[], metavar="NAME=JSON:IMAGES", help="a data set of yours"
    )
    parser.add_argument("--precision", choices=("f32", "bf16"), help="of the engine; by default what the file says")
    parser.add_argument("--eager", action="store_true", help="as the detector's own stack runs it, not its deploy form")
    parser.add_argument(
        "--min-size", type=int, metavar="S", help="short side of the input, of a detector in PyTorch; 0: no resizing"
    )
    parser.add_argument("--threads", type=int, help="of ONNX Runtime and OpenVINO; by default all cores")
    parser.add_argument(
        "--oks-sigmas", type=sigmas, default=(), metavar="S,S,...", help="of each keypoint, or one for all"
    )
    parser.add_argument("--output", metavar="DIR", help="keep the detections there, in COCO's result format")
    parser.add_argument("--json", metavar="FILE", help="write the metrics there, with MACs and time")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return parser

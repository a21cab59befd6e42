"""Write a whole detector, dense or compressed, as one file for ONNX Runtime (.onnx) or OpenVINO (.xml): network,
proposals, RoIAlign and NMS, for any image size. Then it is run beside PyTorch on pictures, and the differences shown.

norton_det.deploy.Predictor runs the file; preprocessing and classes are in it."""

import argparse

from ...utils.options import FILE_PRECISIONS
from ..parser import command_parser

EXAMPLES = """
  norton-det export --weights output/norton_faster_rcnn/model_final.pth --output detector.xml --precision bf16
  norton-det export --weights detector.safetensors --output detector.onnx          # of Detectron2 or torchvision
  norton-det export --config faster_rcnn.yaml --weights other.pth --output detector.onnx    # says too little itself
  norton-det export --weights detector.safetensors --output detector.xml --precision int8 --calibrate coco/val2017
  norton-det export --weights detector.safetensors --output detector.xml --check street.jpg --json parity.json
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--config-file", "--config", metavar="FILE", help="of a Detectron2 detector whose file does not say enough"
    )
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="trained detector; without it the config's, fresh"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help=".onnx, or .xml with a .bin beside it")
    parser.add_argument("--precision", default="f32", choices=FILE_PRECISIONS, help="bf16 and int8 are for .xml")
    parser.add_argument("--classes", metavar="A,B,C", help="names of the classes, in order; by default the file's")
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="NAME=JSON:IMAGES",
        help="the data set of the config, for its names; repeat",
    )
    parser.add_argument(
        "--min-size", type=int, metavar="S", help="short side of the network's input, pixels; 0: no resizing"
    )
    parser.add_argument("--max-size", type=int, metavar="S", help="limit of the long side, pixels")
    parser.add_argument(
        "--calibrate", metavar="DIR", help="pictures for int8, unlabelled; searched with its sub-folders"
    )
    parser.add_argument("--images", type=int, default=128, help="how many of them, drawn at random")
    parser.add_argument(
        "--check", action="append", default=[], metavar="IMAGE", help="compare with PyTorch on it; repeat"
    )
    parser.add_argument("--json", metavar="FILE", help="write the differences there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return parser

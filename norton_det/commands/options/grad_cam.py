"""A Grad-CAM grid: each image, where the dense classifier looks, and where its compressed forms look.

Compressed forms are files (--compressed), or are made on the way from the presets, best with --calibrate. All columns
explain the class that the dense network predicts; CR is the share of MACs saved. With --folder the correlation of the
maps with the dense ones is measured over a sample of images, too."""

import argparse

from ..parser import add_image_options, command_parser

EXAMPLES = """
  norton-det grad-cam street.jpg dog.jpg --weights resnet50.pth --calibrate imagenet/train --output cam.png
  norton-det grad-cam dog.jpg --weights resnet50.pth --compressed norton-50.safetensors norton-78.safetensors
  norton-det grad-cam dog.jpg --weights resnet50.pth --calibrate imagenet/train --folder imagenet/val --json
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, one row each")
    parser.add_argument("--weights", required=True, metavar="FILE", help="the dense classifier")
    parser.add_argument("--compressed", nargs="+", metavar="FILE", help="norton checkpoints of it, one column each")
    parser.add_argument(
        "--presets", nargs="+", default=["norton-50", "norton-64", "norton-78"], metavar="NAME", help="else these"
    )
    parser.add_argument("--calibrate", metavar="DIR", help="unlabelled images to calibrate the presets on")
    parser.add_argument("--folder", metavar="DIR", help="measure the correlation of the maps on images of this folder")
    parser.add_argument("--count", type=int, default=200, help="how many of them")
    add_image_options(parser)
    parser.add_argument("--output", default="output/grad_cam.png", metavar="FILE", help="the picture to write (.png)")
    parser.add_argument("--json", action="store_true", help="print the correlations as JSON")
    return parser

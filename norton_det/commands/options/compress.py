"""Compress a ResNet, the ResNet inside a trained detector, or all of one, with NORTON; write a norton checkpoint.

To a preset, to ranks and ratios, or to a target: --target-macs, --target-params or --target-latency-ms find those.
Reads torchvision's, Detectron2's and the NORTON release's files (nothing in them is run), or torchvision://resnet50.
The checkpoint carries its ranks, ratios and preprocessing: nothing has to be repeated when it is used."""

import argparse

from ...models.presets import PRESETS
from ...utils.options import CRITERIA
from ..parser import add_image_options, command_parser

IMAGES, PICTURES = 512, 64  # to calibrate a ResNet, and a whole detector
EXAMPLES = """
  norton-det compress --weights torchvision://resnet50 --preset norton-78 --output output/resnet50_norton-78.safetensors
  norton-det compress --weights resnet50.pth --preset norton-78 --calibrate imagenet/train --output small.safetensors
  norton-det compress --weights resnet50.pth --rank 2 --ratios "[0.]+[0.28]*19" --output small.safetensors
  norton-det compress --weights output/dense_mask_rcnn/model_final.pth --preset norton-64 --output detector.safetensors
  norton-det compress --weights output/dense_faster_rcnn/model_final.pth --config dense_faster_rcnn.yaml \\
      --preset norton-64 --neck-rank 2 --box-head-rank 128 --output detector.safetensors
  norton-det compress --weights resnet50.pth --target-macs 1.5G --calibrate imagenet/train --output small.safetensors
  norton-det compress --weights output/dense_faster_rcnn/model_final.pth --config dense_faster_rcnn.yaml \\
      --target-latency-ms 50% --calibrate coco/val2017 --output detector.safetensors
  norton-det compress --weights released_norton.pt --output converted.safetensors   # already compressed: converted
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="a file, zoo://NAME, or torchvision://resnet50"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the norton checkpoint to write (.safetensors)")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"{', '.join(PRESETS)}: published rows for ResNet-50, for another ResNet what saves as many MACs",
    )
    parser.add_argument(
        "--rank",
        help="CP rank of the 3x3 filters: 1 to 9, none, or one for each such as [1]*8+[2]*8; 1 with --ratios alone",
    )
    parser.add_argument(
        "--ratios", help='shares to prune such as "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"; none with --rank alone'
    )
    parser.add_argument(
        "--criterion", metavar="NAME", help=f"of pruning: {', '.join(CRITERIA)}; css with --calibrate, else pabs"
    )
    aim = parser.add_argument_group(
        "target",
        "instead of a preset or ranks: what costs least error for it, of a detector in all of its layers; within 5 %",
    )
    aim.add_argument("--target-macs", metavar="N", help="such as 25G, 25e9, or 40%% of the dense network's")
    aim.add_argument("--target-params", metavar="N", help="such as 12.5M, 12.5e6 or 40%%")
    aim.add_argument(
        "--target-latency-ms", metavar="MS", help="such as 300 or 40%%: of the fused network on this machine, one image"
    )
    aim.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="pixels that MACs and latency are of; by default 224 224, for whole detectors 800 800",
    )
    fit = parser.add_argument_group("calibration", "fit what is left to the dense network on unlabelled images")
    fit.add_argument("--calibrate", metavar="DIR", help="a folder of images, searched with its sub-folders")
    fit.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"how many of them, drawn at random; all, where there are fewer; {IMAGES}, for whole detectors {PICTURES}",
    )
    add_image_options(fit)
    fit.add_argument("--no-compensate", action="store_true", help="no least squares of the 1x1 convolutions")
    fit.add_argument(
        "--decomposition", choices=("output", "weight"), help="what CP is to preserve; the output by default"
    )
    fit.add_argument(
        "--no-batch-norm",
        action="store_true",
        help="fit nothing and keep the old statistics: images serve the criterion css only",
    )
    fit.add_argument("--device", default="cpu", help="where the fit is computed, such as cuda")
    around = parser.add_argument_group(
        "whole detector", "factor the layers around the ResNet of a trained detector too; without these they stay dense"
    )
    around.add_argument(
        "--config-file", "--config", metavar="FILE", help="of a Detectron2 detector; torchvision's need none"
    )
    around.add_argument(
        "--neck-rank", type=int, metavar="R", help="CP rank of the FPN's output and the RPN's convolutions"
    )
    around.add_argument("--head-rank", type=int, metavar="R", help="CP rank of mask and keypoint heads' convolutions")
    around.add_argument(
        "--box-head-rank", type=int, metavar="R", help="rank of the box head's linear layers, such as 128"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the decomposition's random starts")
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, only the summary")
    return parser

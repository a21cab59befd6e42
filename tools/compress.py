#!/usr/bin/env python3
"""Compress a ResNet, or the ResNet inside a trained detector, with NORTON and write a norton checkpoint.

Reads torchvision's, Detectron2's and the NORTON release's files (nothing in them is run), or torchvision://resnet50.
The checkpoint carries its ranks, ratios and preprocessing: nothing has to be repeated when it is used."""

import argparse
import json
from pathlib import Path

from norton_det.calibration import Calibration
from norton_det.checkpoint import CheckpointInfo, save_checkpoint, save_tensors
from norton_det.cli import add_image_options, parser, run
from norton_det.compress import compress, compress_detector_state
from norton_det.data.images import load_images
from norton_det.detector import DetectorReport, compress_detector
from norton_det.device import check_device
from norton_det.errors import InputError
from norton_det.files import atomic_path, require_writable
from norton_det.preprocessing import Preprocessing
from norton_det.report import CompressionReport
from norton_det.saliency import criteria
from norton_det.spec import PRESETS, CompressionSpec
from norton_det.weights import load_detector_state, load_weights

AROUND = ("neck_rank", "head_rank", "box_head_rank")
EXAMPLES = """
  tools/compress.py --weights torchvision://resnet50 --preset norton-78 --output output/resnet50_norton-78.safetensors
  tools/compress.py --weights resnet50.pth --preset norton-78 --calibrate imagenet/train --output small.safetensors
  tools/compress.py --weights resnet50.pth --rank 2 --ratios "[0.]+[0.28]*19" --output small.safetensors
  tools/compress.py --weights output/dense_faster_rcnn/model_final.pth --preset norton-64 --output detector.safetensors
  tools/compress.py --weights output/dense_faster_rcnn/model_final.pth --config dense_faster_rcnn.yaml \\
      --preset norton-64 --neck-rank 2 --box-head-rank 128 --output detector.safetensors
  tools/compress.py --weights released_norton.pt --output converted.safetensors   # already compressed: converted
"""


def make_parser() -> argparse.ArgumentParser:
    own = parser(__doc__, EXAMPLES)
    own.add_argument("--weights", required=True, metavar="FILE", help="a file, or torchvision://resnet50 (101, 152)")
    own.add_argument("--output", required=True, metavar="FILE", help="the norton checkpoint to write (.safetensors)")
    own.add_argument("--preset", metavar="NAME", help=f"a published row: {', '.join(PRESETS)}")
    own.add_argument(
        "--rank",
        help="CP rank of the 3x3 filters: 1 to 9, none, or one per block such as [1]*8+[2]*8; 1 with --ratios alone",
    )
    own.add_argument(
        "--ratios", help='shares to prune such as "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"; none with --rank alone'
    )
    own.add_argument("--arch", default="resnet50", help="resnet50, resnet101 or resnet152, with --rank and --ratios")
    own.add_argument(
        "--criterion", metavar="NAME", help=f"of pruning: {', '.join(criteria())}; css with --calibrate, else pabs"
    )
    fit = own.add_argument_group("calibration", "fit what is left to the dense network on unlabelled images")
    fit.add_argument("--calibrate", metavar="DIR", help="a folder of images, searched with its sub-folders")
    fit.add_argument(
        "--images", type=int, default=512, help="how many of them, drawn at random; all, where there are fewer"
    )
    add_image_options(fit)
    fit.add_argument("--no-compensate", action="store_true", help="no least squares of the 1x1 convolutions")
    fit.add_argument("--decomposition", default="output", choices=("output", "weight"), help="what CP is to preserve")
    fit.add_argument(
        "--no-batch-norm",
        action="store_true",
        help="fit nothing and keep the old statistics: images serve the criterion css only",
    )
    fit.add_argument("--device", default="cpu", help="where the fit is computed, such as cuda")
    around = own.add_argument_group(
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
    own.add_argument("--seed", type=int, default=0, help="of the decomposition's random starts")
    own.add_argument("--json", metavar="FILE", help="write the report there")
    own.add_argument("--quiet", action="store_true", help="no progress bar, only the summary")
    return own


def spec_from(args: argparse.Namespace) -> CompressionSpec | None:
    """The spec that the flags ask for; ``None`` without any."""
    if args.preset and (args.rank or args.ratios):
        raise InputError(f"expected --preset or --rank and --ratios, got both; drop --preset {args.preset}")
    if args.preset and args.arch != "resnet50":
        raise InputError(f"--arch: presets are for resnet50, got {args.arch}; give --rank and --ratios")
    if args.preset:
        return CompressionSpec.preset(args.preset)
    if args.rank or args.ratios:
        dense = CompressionSpec.dense(args.arch)
        return CompressionSpec.parse(args.rank or 1, args.ratios or dense.ratios, args.arch)
    return None


def read_calibration(args: argparse.Namespace, preprocessing: Preprocessing) -> Calibration | None:
    """The images and switches that the flags ask for; what cannot be read is named."""
    if args.calibrate is None:
        return None
    images, broken, shape = load_images(
        args.calibrate,
        preprocessing,
        count=args.images,
        size=args.image_size,
        resize=args.resize,
        seed=args.seed,
        progress=not args.quiet,
    )
    for path in broken:
        print(f"skipped, cannot be read: {path}")
    print(f"{args.calibrate}: {len(images)} images, {shape}")
    return Calibration(
        images,
        batch_norm=not args.no_batch_norm,
        compensate=not (args.no_compensate or args.no_batch_norm),
        decomposition="weight" if args.no_batch_norm else args.decomposition,
        seed=args.seed,
        device=args.device,
    )


def compress_around(args: argparse.Namespace, spec: CompressionSpec | None) -> None:
    """Compress a whole detector."""
    ranks = {name: getattr(args, name) for name in AROUND}
    options = ranks | {"seed": args.seed, "criterion": args.criterion, "progress": not args.quiet}
    if args.calibrate:
        raise InputError("--calibrate: expected a ResNet to fit, got ranks of a whole detector; drop one of them")
    if "://" in args.weights:
        raise InputError(f"--weights: expected the file of a detector, got {args.weights}; drop the ranks or --config")
    if args.config_file:
        from norton_det.d2.engine import compress_to_file, load_config

        cfg = load_config(args.config_file, ["MODEL.WEIGHTS", args.weights])
        report = compress_to_file(args.output, cfg, spec, whole=True, **options)
    else:
        from norton_det.tv import save_detector
        from norton_det.tv.surgery import load_torchvision_detector

        result = compress_detector(load_torchvision_detector(args.weights), spec, **options)
        report = result.report
        save_detector(args.output, result.model)
    print(report.summary() if args.quiet else report.table())
    write_report(args, report)
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB (whole detector)")


def write_report(args: argparse.Namespace, report: CompressionReport | DetectorReport) -> None:
    if args.json:
        with atomic_path(Path(args.json)) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=1) + "\n")


def main() -> None:
    args = make_parser().parse_args()
    if not args.output.endswith(".safetensors"):
        raise InputError(f"--output: expected a name ending in .safetensors, got {args.output}; add the ending")
    check_device(args.device)
    for path in filter(None, (args.output, args.json)):
        require_writable(path)
    if Path(args.output).exists() and Path(args.weights).exists() and Path(args.output).samefile(args.weights):
        raise InputError(f"--output: expected another file than --weights, got {args.output}; choose another name")
    spec = spec_from(args)
    if args.config_file or any(getattr(args, name) is not None for name in AROUND):
        compress_around(args, spec)
        return
    loaded = load_weights(args.weights)
    print(f"{args.weights}: {loaded.source}")
    if not loaded.spec.is_dense or spec is None:
        if spec is not None:
            raise InputError(
                f"{args.weights}: expected dense weights, got {loaded.spec}; drop --preset, --rank, --ratios"
            )
        if loaded.spec.is_dense:
            raise InputError("expected what to compress to; give --preset norton-78, or --rank and --ratios")
        save_checkpoint(args.output, loaded.build())
        print(f"{args.output}: converted, {loaded.spec}")
        return
    options = {
        "criterion": args.criterion,
        "calibration": read_calibration(args, loaded.preprocessing),
        "seed": args.seed,
        "preprocessing": loaded.preprocessing,
        "stride_in_1x1": loaded.stride_in_1x1,
        "progress": not args.quiet,
    }
    detector = load_detector_state(args.weights)
    if detector is None:
        result = compress(loaded.state, spec, **options)
        report = result.report
        save_checkpoint(args.output, result.model)
    else:
        state, report = compress_detector_state(detector, spec, **options)
        save_tensors(args.output, state, CheckpointInfo(spec, loaded.preprocessing, 0, loaded.stride_in_1x1))
    print(report.summary() if args.quiet else report.table())
    write_report(args, report)
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB{' (whole detector)' if detector else ''}")


if __name__ == "__main__":
    run(main)

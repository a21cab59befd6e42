#!/usr/bin/env python3
"""A Grad-CAM grid: each image, where the dense classifier looks, and where its compressed forms look.

Compressed forms are files (--compressed), or are made on the way from the presets, best with --calibrate. All columns
explain the class that the dense network predicts; CR is the share of MACs saved. With --folder the correlation of the
maps with the dense ones is measured over a sample of images, too."""

import argparse
import json
from pathlib import Path

from norton_det.cli import add_image_options, parser, run

# isort: split
import torch

from norton_det.calibration import Calibration
from norton_det.cam import agreement, draw_grid, grad_cam, to_pixels
from norton_det.compress import compress
from norton_det.data.images import choose_size, load_images, make_transform, read_image
from norton_det.errors import InputError
from norton_det.files import atomic_path, require_file, require_writable
from norton_det.resnet import NortonResNet
from norton_det.spec import CompressionSpec
from norton_det.weights import LoadedWeights, load_weights

EXAMPLES = """
  tools/grad_cam.py street.jpg dog.jpg --weights resnet50.pth --calibrate imagenet/train --output cam.png
  tools/grad_cam.py dog.jpg --weights resnet50.pth --compressed norton-50.safetensors norton-78.safetensors
  tools/grad_cam.py dog.jpg --weights resnet50.pth --calibrate imagenet/train --folder imagenet/val --json
"""


def make_parser() -> argparse.ArgumentParser:
    own = parser(__doc__, EXAMPLES)
    own.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, one row each")
    own.add_argument("--weights", required=True, metavar="FILE", help="the dense classifier")
    own.add_argument("--compressed", nargs="+", metavar="FILE", help="norton checkpoints of it, one column each")
    own.add_argument(
        "--presets", nargs="+", default=["norton-50", "norton-64", "norton-78"], metavar="NAME", help="else these"
    )
    own.add_argument("--calibrate", metavar="DIR", help="unlabelled images to calibrate the presets on")
    own.add_argument("--folder", metavar="DIR", help="measure the correlation of the maps on images of this folder")
    own.add_argument("--count", type=int, default=200, help="how many of them")
    add_image_options(own)
    own.add_argument("--output", default="output/grad_cam.png", metavar="FILE", help="the picture to write (.png)")
    own.add_argument("--json", action="store_true", help="print the correlations as JSON")
    return own


def candidates(args: argparse.Namespace, loaded: LoadedWeights, dense: NortonResNet) -> dict[str, NortonResNet]:
    """Compressed networks by the text above their column."""
    found = {}
    if args.compressed:
        for path in args.compressed:
            small = load_weights(path)
            if small.num_classes != loaded.num_classes or small.preprocessing != loaded.preprocessing:
                raise InputError(
                    f"{path}: expected a compressed form of {args.weights}, got another network's; leave it out"
                )
            found[small.spec.name or Path(path).stem] = small.build()
        return found
    specs = [CompressionSpec.preset(name) for name in args.presets]
    calibration = None
    if args.calibrate:
        shape = {"size": args.image_size, "resize": args.resize}
        images, broken, _ = load_images(args.calibrate, loaded.preprocessing, progress=True, **shape)
        for path in broken:
            print(f"skipped, cannot be read: {path}")
        calibration = Calibration(images)
    for spec in specs:
        found[spec.name] = compress(dense, spec, calibration=calibration, progress=True).model
    return found


def main() -> None:
    args = make_parser().parse_args()
    if not args.output.endswith(".png"):
        raise InputError(f"--output: expected a name ending in .png, got {args.output}; add the ending")
    require_writable(args.output)
    paths = [require_file(path, "an image") for path in args.images]
    loaded = load_weights(args.weights)
    if not loaded.spec.is_dense or not loaded.num_classes:
        raise InputError(f"{args.weights}: expected a dense classifier with fc; give the weights before compression")
    sample = None
    if args.folder:
        size = {"size": args.image_size, "resize": args.resize}
        sample, _, _ = load_images(args.folder, loaded.preprocessing, count=args.count, **size)
    shape = choose_size(paths, args.image_size, args.resize)
    transform = make_transform(loaded.preprocessing, shape)
    images = torch.stack([transform(read_image(path)) for path in paths])
    dense = loaded.build()
    models = {"CR 0 %": dense} | {_column(name): model for name, model in candidates(args, loaded, dense).items()}
    classes = predict(dense, images)
    columns = {name: grad_cam(model, images, classes) for name, model in models.items()}
    with atomic_path(args.output) as temporary:
        draw_grid(to_pixels(images, loaded.preprocessing), columns).save(temporary, format="png", optimize=True)
    report = {"images": [str(path) for path in paths], "output": args.output}
    if sample is not None:
        classes = predict(dense, sample)
        wanted = grad_cam(dense, sample, classes)
        report["correlation_images"] = len(sample)
        report["correlation"] = {
            name: float(agreement(grad_cam(model, sample, classes), wanted).mean())
            for name, model in models.items()
            if model is not dense
        }
    if args.json:
        print(json.dumps(report, indent=1))
        return
    for name, value in report.get("correlation", {}).items():
        print(f"{name}: correlation with the dense maps {value:.3f} (mean of {report['correlation_images']} images)")
    print(args.output)


@torch.inference_mode()
def predict(model: NortonResNet, images: torch.Tensor) -> list[int]:
    """Predicted classes."""
    return torch.cat([model(part).argmax(1) for part in images.split(32)]).tolist()


def _column(name: str) -> str:
    """norton-78 saves 78 % of the MACs."""
    return f"CR {name.removeprefix('norton-')} %" if name.startswith("norton-") else name


if __name__ == "__main__":
    run(main)

#!/usr/bin/env python3
"""Top-1 and Top-5 accuracy of a classifier on an ImageNet-style folder, one sub-folder per class.

Folders of a head of 1000 classes are matched by their wnid (n01440764, ...), so a part of ImageNet's classes will do;
with another head the sorted folders are its classes, or --classes lists them."""

import argparse
import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from norton_det.classify import evaluate
from norton_det.cli import add_image_options, parser, run
from norton_det.data.classes import ClassFolder, read_classes
from norton_det.device import check_device
from norton_det.errors import InputError
from norton_det.files import atomic_path, require_writable
from norton_det.fuse import fuse
from norton_det.weights import load_weights

EXAMPLES = """
  tools/evaluate.py --weights output/resnet50_norton-78.safetensors --data imagenet/val
  tools/evaluate.py --weights resnet50.pth --data imagenette/val --image-size 128 --resize 160 --json
"""


def make_parser() -> argparse.ArgumentParser:
    own = parser(__doc__, EXAMPLES)
    own.add_argument("--weights", required=True, metavar="FILE", help="dense or compressed, or torchvision://resnet50")
    own.add_argument("--data", required=True, metavar="DIR", help="a folder with one folder per class")
    own.add_argument("--classes", metavar="FILE", help="the head's classes in order, one folder name a line")
    add_image_options(own)
    own.add_argument("--batch-size", type=int, default=64, help="images at a time")
    own.add_argument("--workers", type=int, default=0, help="processes that read images")
    own.add_argument("--fuse", action="store_true", help="evaluate the deploy form")
    own.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="such as cuda")
    own.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it there")
    own.add_argument("--quiet", action="store_true", help="no progress bar")
    return own


def main() -> None:
    args = make_parser().parse_args()
    if args.batch_size < 1 or args.workers < 0:
        got = f"--batch-size {args.batch_size} and --workers {args.workers}"
        raise InputError(f"expected a batch size of 1 or more and 0 or more workers, got {got}; raise them")
    if args.json and args.json != "-":
        require_writable(args.json)
    check_device(args.device)
    loaded = load_weights(args.weights)
    if not loaded.num_classes:
        raise InputError(f"{args.weights}: expected a classifier, got a backbone without fc; use weights with fc")
    classes = read_classes(args.classes) if args.classes else None
    data = ClassFolder(
        args.data, loaded.num_classes, loaded.preprocessing, size=args.image_size, resize=args.resize, classes=classes
    )
    model = loaded.build()
    model = fuse(model) if args.fuse else model
    loader = DataLoader(data, args.batch_size, num_workers=args.workers)
    found = evaluate(model, loader, device=args.device, progress=not args.quiet)
    skipped = [str(data.files[index]) for index in found.skipped]
    report = {
        "weights": args.weights,
        "data": args.data,
        "images": found.images,
        "skipped": skipped,
        "classes": len(data.classes),
        "size": data.shape.size,
        "resize": data.shape.resize,
        "top1": found.top1,
        "top5": found.top5,
    }
    if args.json and args.json != "-":
        with atomic_path(Path(args.json)) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")
    if args.json == "-":
        print(json.dumps(report, indent=1))
        return
    print(f"{args.weights}: {loaded.source}{'' if loaded.spec.is_dense else f', {loaded.spec}'}")
    ranked = "" if len(data.classes) == loaded.num_classes else f", ranked among the head's {loaded.num_classes}"
    print(f"{args.data}: {found.images} images of {len(data.classes)} classes{ranked}, {data.shape}")
    print(f"Top-1 {found.top1:.2f} %   Top-5 {found.top5:.2f} %")


if __name__ == "__main__":
    run(main)

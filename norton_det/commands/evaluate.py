"""The work of ``norton-det evaluate``; ``options/evaluate.py`` says what it is."""

import argparse
import json

from torch.utils.data import DataLoader

from ..checkpoint.load import load_weights
from ..classification.accuracy import evaluate
from ..data.classes import ClassFolder, read_classes
from ..models.fuse import fuse
from ..utils.device import check_device, default_device
from ..utils.errors import InputError
from ..utils.files import require_writable, write_text


def main(args: argparse.Namespace) -> None:
    if args.batch_size < 1 or args.workers < 0:
        got = f"--batch-size {args.batch_size} and --workers {args.workers}"
        raise InputError(f"expected a batch size of 1 or more and 0 or more workers, got {got}; raise them")
    if args.json and args.json != "-":
        require_writable(args.json)
    args.device = check_device(args.device or default_device())
    loaded = load_weights(args.weights)
    if not loaded.num_classes:
        raise InputError(f"{args.weights}: expected a classifier, got a backbone without fc; use weights with fc")
    classes = read_classes(args.classes) if args.classes else None
    data = ClassFolder(
        args.data, loaded.num_classes, loaded.preprocessing, size=args.image_size, resize=args.resize, classes=classes
    )
    model = fuse(loaded.build()) if args.fuse else loaded.build()
    loader = DataLoader(data, args.batch_size, num_workers=args.workers)
    accuracy = evaluate(model, loader, device=args.device, progress=not args.quiet)
    skipped = [str(data.files[index]) for index in accuracy.skipped]
    report = {
        "weights": args.weights,
        "data": args.data,
        "images": accuracy.images,
        "skipped": skipped,
        "classes": len(data.classes),
        "size": data.shape.size,
        "resize": data.shape.resize,
        "top1": accuracy.top1,
        "top5": accuracy.top5,
    }
    if args.json and args.json != "-":
        write_text(args.json, json.dumps(report, indent=1) + "\n")
    if args.json == "-":
        print(json.dumps(report, indent=1))
        return
    print(f"{args.weights}: {loaded.source}{'' if loaded.spec.is_dense else f', {loaded.spec}'}")
    ranked = "" if len(data.classes) == loaded.num_classes else f", ranked among the head's {loaded.num_classes}"
    print(f"{args.data}: {accuracy.images} images of {len(data.classes)} classes{ranked}, {data.shape}")
    print(f"Top-1 {accuracy.top1:.2f} %   Top-5 {accuracy.top5:.2f} %")

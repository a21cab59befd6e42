#!/usr/bin/env python3
"""Fine-tune a compressed (or dense) classifier on an ImageNet-style folder, optionally taught by the dense network.

The default is the paper's recipe. Writes best.safetensors, last.pth, metrics.json and curve.png to --output."""

import argparse
import json
import os
from pathlib import Path

from norton_det.cli import add_image_options, add_train_size, parser, run

# isort: split
import torch
from torch import distributed as dist
from torch.utils.data import Dataset, Subset

from norton_det.data.classes import ClassFolder, read_classes
from norton_det.device import check_device
from norton_det.errors import InputError
from norton_det.files import require_writable
from norton_det.finetune import fine_tune
from norton_det.plots import plot_lines
from norton_det.recipe import Recipe
from norton_det.weights import LoadedWeights, load_weights

EXAMPLES = """
  tools/finetune.py --weights small.safetensors --data imagenet --output output/finetune
  tools/finetune.py --weights small.safetensors --data imagenet --teacher torchvision://resnet50 --output output/distil
  tools/finetune.py --weights small.safetensors --data imagenet --output output/finetune --resume
  torchrun --nproc-per-node 8 tools/finetune.py --weights small.safetensors --data imagenet --output output/finetune
  tools/finetune.py --weights small.safetensors --data imagenette --epochs 1 --batch-size 64 --image-size 128 \\
      --resize 160 --teacher resnet50_imagenette.safetensors --output output/quick      # two CPU cores
"""


def make_parser() -> argparse.ArgumentParser:
    own, usual = parser(__doc__, EXAMPLES), Recipe()
    own.add_argument("--weights", required=True, metavar="FILE", help="what to fine-tune")
    own.add_argument("--data", required=True, metavar="DIR", help="folder with train/ and val/, one folder per class")
    own.add_argument("--output", required=True, metavar="DIR", help="where results go")
    own.add_argument("--teacher", metavar="FILE", help="the dense network: distils its logits and stage features")
    own.add_argument("--distill", type=float, help="weight of the teacher's logits; 0.9 with a teacher")
    own.add_argument("--features", type=float, help="weight of the teacher's features; 1 with a teacher")
    own.add_argument("--temperature", type=float, default=usual.temperature, help="of the distilled logits")
    own.add_argument("--epochs", type=float, default=usual.epochs, help="passes over train/; fractions are allowed")
    own.add_argument("--learning-rate", type=float, default=usual.learning_rate, help="at its peak")
    own.add_argument("--warmup-epochs", type=float, default=usual.warmup_epochs, help="at most a tenth of the run")
    own.add_argument("--batch-size", type=int, default=usual.batch_size, help="of all processes together")
    own.add_argument(
        "--weight-decay", type=float, default=usual.weight_decay, help="of weights, not of biases and normalisation"
    )
    own.add_argument("--label-smoothing", type=float, default=usual.label_smoothing, help="of the labels")
    own.add_argument("--ema", type=float, default=usual.ema, help="decay of averaged weights, such as 0.999; 0: none")
    own.add_argument("--amp", default=usual.amp, choices=("float32", "bfloat16", "float16"), help="autocast")
    add_image_options(own)
    add_train_size(own)
    own.add_argument("--classes", metavar="FILE", help="the head's classes in order, one folder name a line")
    own.add_argument("--limit", type=int, metavar="N", help="only N training images, drawn evenly")
    own.add_argument("--workers", type=int, default=usual.workers, help="processes that read images")
    own.add_argument("--seed", type=int, default=usual.seed, help="of everything random")
    own.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="such as cuda")
    own.add_argument("--resume", action="store_true", help="go on from last.pth in --output")
    own.add_argument("--quiet", action="store_true", help="no progress bar")
    return own


def recipe_from(args: argparse.Namespace) -> Recipe:
    taught = args.teacher is not None
    return Recipe(
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        warmup_epochs=args.warmup_epochs,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        distill=(0.9 if taught else 0.0) if args.distill is None else args.distill,
        temperature=args.temperature,
        features=(1.0 if taught else 0.0) if args.features is None else args.features,
        ema=args.ema,
        amp=args.amp,
        workers=args.workers,
        seed=args.seed,
    )


def read_data(args: argparse.Namespace, loaded: LoadedWeights) -> tuple[Dataset, ClassFolder]:
    """train/ with augmentation (a part of it with --limit) and val/."""
    classes = read_classes(args.classes) if args.classes else None
    own_size = None if args.train_size is None else (args.train_size, None)
    train, val = (
        ClassFolder(
            Path(args.data) / part,
            loaded.num_classes,
            loaded.preprocessing,
            size=size,
            resize=resize,
            classes=classes,
            augment=part == "train",
        )
        for part, size, resize in (
            ("train", *(own_size or (args.image_size, args.resize))),
            ("val", args.image_size, args.resize),
        )
    )
    if args.limit is None or args.limit >= len(train):
        return train, val
    if args.limit < 1:
        raise InputError(f"--limit: expected 1 or more images, got {args.limit}; leave it out for all")
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: args.limit]
    return Subset(train, drawn.tolist()), val


def main() -> None:
    args = make_parser().parse_args()
    recipe = recipe_from(args)
    check_device(args.device)
    output = Path(args.output)
    require_writable(output / "metrics.json")
    if (output / "last.pth").exists() and not args.resume:
        raise InputError(f"{output}: expected a new folder, got one with last.pth; add --resume or choose another")
    loaded = load_weights(args.weights)
    teacher = load_weights(args.teacher) if args.teacher else None
    for name, weights in ((args.weights, loaded), (args.teacher, teacher)):
        if weights is not None and not weights.num_classes:
            raise InputError(f"{name}: expected a classifier, got a backbone without fc; use the weights with fc")
    if teacher is not None and not teacher.spec.is_dense:
        raise InputError(
            f"--teacher: expected the dense network, got {teacher.spec}; give the weights before compression"
        )
    if teacher is not None and teacher.num_classes != loaded.num_classes:
        raise InputError(
            f"{args.teacher}: expected {loaded.num_classes} classes as {args.weights} has, got {teacher.num_classes}; "
            "use the network that was compressed"
        )
    train, val = read_data(args, loaded)
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        if args.device.startswith("cuda"):
            args.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
            torch.cuda.set_device(args.device)
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    main_process = not dist.is_initialized() or dist.get_rank() == 0
    try:
        rows = fine_tune(
            loaded.build(),
            train,
            val,
            recipe,
            output,
            teacher=teacher.build() if teacher else None,
            device=args.device,
            resume=args.resume,
            progress=main_process and not args.quiet,
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if main_process:
        best = max(rows, key=lambda row: row["top1"])
        epochs = [row["epoch"] for row in rows]
        curve = {"Top-1 %": (epochs, [row["top1"] for row in rows])}
        plot_lines(output / "curve.png", curve, "epoch", "Top-1 %", f"{loaded.spec.name or loaded.spec.arch}")
        print(json.dumps(rows[-1]))
        print(f"best Top-1 {best['top1']:.2f} % (epoch {best['epoch']:g}): {output / 'best.safetensors'}")


if __name__ == "__main__":
    run(main)

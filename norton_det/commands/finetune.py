"""The work of ``norton-det finetune``; ``options/finetune.py`` says what it is."""

import argparse
import json
import os
from pathlib import Path

import torch
from torch import distributed as dist
from torch.utils.data import Dataset, Subset

from ..checkpoint.load import LoadedWeights, load_weights
from ..classification.finetune import fine_tune
from ..classification.recipe import Recipe
from ..data.classes import ClassFolder, read_classes
from ..utils.device import check_device, default_device
from ..utils.errors import InputError
from ..utils.files import require_writable
from ..utils.plots import plot_lines


def recipe_from(args: argparse.Namespace) -> Recipe:
    """The settings that the flags ask for; with a teacher its losses are on unless they say otherwise."""
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
    train_size = None if args.train_size is None else (args.train_size, None)
    train, val = (
        ClassFolder(
            Path(args.data) / split,
            loaded.num_classes,
            loaded.preprocessing,
            size=size,
            resize=resize,
            classes=classes,
            augment=split == "train",
        )
        for split, size, resize in (
            ("train", *(train_size or (args.image_size, args.resize))),
            ("val", args.image_size, args.resize),
        )
    )
    if args.limit is None or args.limit >= len(train):
        return train, val
    if args.limit < 1:
        raise InputError(f"--limit: expected 1 or more images, got {args.limit}; leave it out for all")
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: args.limit]
    return Subset(train, drawn.tolist()), val


def main(args: argparse.Namespace) -> None:
    recipe = recipe_from(args)
    args.device = check_device(args.device or default_device())
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

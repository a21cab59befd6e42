#!/usr/bin/env python3
"""The studies behind docs/results.md, each on a trained network and real images: a CSV, a Markdown table and a plot.

calibration  what each switch keeps before any fine-tuning, at the five published levels
finetune     one fine-tuning stage, dense and the five levels, over seeds
rank         (a) ranks 1 to 9, decomposition alone
criteria     (b) pruning criteria at the same ratios, over seeds
steps        (c) decomposition alone, pruning alone, both, at the same MACs
methods      (d) filter-wise CP against layer-wise CP, SVD and Tucker-2 at the same MACs (needs tensorly)
tradeoff     (e) rank against ratio at 65 % fewer MACs

A study that was cut off goes on where it stopped; delete its CSV to start anew."""

import argparse
from pathlib import Path

from norton_det.commands.parser import add_image_options, add_train_size, command_parser, run

# isort: split
from studies import ablations, calibrated
from studies.bench import BATCH, Bench, Settings

from norton_det.utils.errors import InputError
from norton_det.utils.files import require_writable, write_text
from norton_det.utils.tables import Table

EXAMPLES = """
  tools/study.py calibration --weights resnet50.pth --data imagenet --output docs/results
  tools/study.py rank --weights resnet50_imagenette.safetensors --data imagenette --image-size 128 --resize 160
"""
STUDIES = {  # name -> function, the columns that tell rows apart
    "calibration": (calibrated.calibration, ("level", "step")),
    "finetune": (calibrated.finetune, ("level", "seed")),
    "rank": (ablations.rank, ("rank",)),
    "criteria": (ablations.criteria, ("criterion", "seed")),
    "steps": (ablations.steps, ("case",)),
    "methods": (ablations.methods, ("rank", "method")),
    "tradeoff": (ablations.tradeoff, ("rank",)),
}


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("study", choices=STUDIES, help="which one")
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="a trained dense ResNet-50 with its classifier"
    )
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="folder with train/ and val/, one folder per class"
    )
    parser.add_argument("--output", default="output/studies", metavar="DIR", help="where NAME.csv, .md and .png go")
    add_image_options(parser)
    add_train_size(parser)
    parser.add_argument("--images", type=int, default=512, help="unlabelled images for calibration")
    parser.add_argument("--val-images", type=int, metavar="N", help="validate on N random images; by default on all")
    parser.add_argument("--finetune-images", type=int, default=2048, help="training images of a fine-tuning")
    parser.add_argument("--epochs", type=float, default=1.0, help="of a fine-tuning")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="of a fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="of a fine-tuning, at its peak")
    parser.add_argument("--ema", type=float, default=0.0, help="decay of the average of its weights, such as 0.97")
    parser.add_argument("--amp", default="float32", choices=("float32", "bfloat16"), help="autocast of a fine-tuning")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of finetune and criteria")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    for field in ("images", "finetune_images", "seeds", "val_images"):
        if getattr(args, field) is not None and getattr(args, field) < 1:
            raise InputError(f"--{field.replace('_', '-')}: expected 1 or more, got {getattr(args, field)}; raise it")
    output = Path(args.output)
    require_writable(output / f"{args.study}.md")
    settings = Settings(
        args.weights,
        Path(args.data),
        output,
        args.image_size,
        args.resize,
        args.images,
        args.val_images,
        args.finetune_images,
        args.train_size,
        args.epochs,
        args.batch_size,
        args.learning_rate,
        args.ema,
        args.amp,
        args.seeds,
    )
    study, keys = STUDIES[args.study]
    text = study(Bench(settings), Table(output / f"{args.study}.csv", keys))
    write_text(output / f"{args.study}.md", text)
    print(text)


if __name__ == "__main__":
    run(main)

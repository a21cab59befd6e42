"""Fine-tune a compressed (or dense) classifier on an ImageNet-style folder, optionally taught by the dense network.

The default is the paper's recipe. Writes best.safetensors, last.pth, metrics.json and curve.png to --output."""

import argparse

from ...classification.recipe import Recipe
from ..parser import add_image_options, add_train_size, command_parser

EXAMPLES = """
  norton-det finetune --weights small.safetensors --data imagenet --output output/finetune
  norton-det finetune --weights small.safetensors --data imagenet --teacher torchvision://resnet50 --output distil
  norton-det finetune --weights small.safetensors --data imagenet --output output/finetune --resume
  torchrun --nproc-per-node 8 -m norton_det finetune --weights small.safetensors --data imagenet --output finetune
  norton-det finetune --weights small.safetensors --data imagenette --epochs 1 --batch-size 64 --image-size 128 \\
      --resize 160 --teacher resnet50_imagenette.safetensors --output output/quick      # two CPU cores
"""


def make_parser() -> argparse.ArgumentParser:
    parser, recipe = command_parser(__doc__, EXAMPLES), Recipe()
    parser.add_argument("--weights", required=True, metavar="FILE", help="what to fine-tune")
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="folder with train/ and val/, one folder per class"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where results go")
    parser.add_argument("--teacher", metavar="FILE", help="the dense network: distils its logits and stage features")
    parser.add_argument("--distill", type=float, help="weight of the teacher's logits; 0.9 with a teacher")
    parser.add_argument("--features", type=float, help="weight of the teacher's features; 1 with a teacher")
    parser.add_argument("--temperature", type=float, default=recipe.temperature, help="of the distilled logits")
    parser.add_argument("--epochs", type=float, default=recipe.epochs, help="passes over train/; fractions are allowed")
    parser.add_argument("--learning-rate", type=float, default=recipe.learning_rate, help="at its peak")
    parser.add_argument("--warmup-epochs", type=float, default=recipe.warmup_epochs, help="at most a tenth of the run")
    parser.add_argument("--batch-size", type=int, default=recipe.batch_size, help="of all processes together")
    parser.add_argument(
        "--weight-decay", type=float, default=recipe.weight_decay, help="of weights, not of biases and normalisation"
    )
    parser.add_argument("--label-smoothing", type=float, default=recipe.label_smoothing, help="of the labels")
    parser.add_argument(
        "--ema", type=float, default=recipe.ema, help="decay of averaged weights, such as 0.999; 0: none"
    )
    parser.add_argument("--amp", default=recipe.amp, choices=("float32", "bfloat16", "float16"), help="autocast")
    add_image_options(parser)
    add_train_size(parser)
    parser.add_argument("--classes", metavar="FILE", help="the head's classes in order, one folder name a line")
    parser.add_argument("--limit", type=int, metavar="N", help="only N training images, drawn evenly")
    parser.add_argument("--workers", type=int, default=recipe.workers, help="processes that read images")
    parser.add_argument("--seed", type=int, default=recipe.seed, help="of everything random")
    parser.add_argument("--device", help="such as cpu; by default cuda where there is one")
    parser.add_argument("--resume", action="store_true", help="go on from last.pth in --output")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser

"""Fine-tune a compressed (or dense) classifier on an ImageNet-style folder, optionally taught by the dense network.

The default is the paper's recipe. Writes best.safetensors, last.pth, metrics.json and curve.png to --output."""

import argparse

from ...classification.recipe import Recipe
from ..parser import add_image_options, add_train_size, parser

EXAMPLES = """
  norton-det finetune --weights small.safetensors --data imagenet --output output/finetune
  norton-det finetune --weights small.safetensors --data imagenet --teacher torchvision://resnet50 --output distil
  norton-det finetune --weights small.safetensors --data imagenet --output output/finetune --resume
  torchrun --nproc-per-node 8 -m norton_det finetune --weights small.safetensors --data imagenet --output finetune
  norton-det finetune --weights small.safetensors --data imagenette --epochs 1 --batch-size 64 --image-size 128 \\
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
    own.add_argument("--device", help="such as cpu; by default cuda where there is one")
    own.add_argument("--resume", action="store_true", help="go on from last.pth in --output")
    own.add_argument("--quiet", action="store_true", help="no progress bar")
    return own

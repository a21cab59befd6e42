#!/usr/bin/env python3
"""Write the generated data set (COCO format: boxes, masks, crowds, keypoints). Nothing is downloaded."""

import json

from tqdm import tqdm

from norton_det.cli import parser, run
from norton_det.data import generate_dataset, resolve_datasets_root

EXAMPLES = """
  python datasets/prepare_generated.py                                 500 images where Detectron2 looks for data
  python datasets/prepare_generated.py /tmp/shapes --train 2000 --val 200 --seed 3
  python datasets/prepare_generated.py /tmp/small --train 40 --val 20 --height 160 --width 160

The same parameters give the same files. A folder that already holds them is left as it is; any other is refused.
Then: DATASETS.TRAIN "('norton_shapes_train',)" DATASETS.TEST "('norton_shapes_val',)", or norton_shapes_keypoints_*.
"""


def main() -> None:
    args_parser = parser(__doc__, EXAMPLES)
    args_parser.add_argument(
        "root", nargs="?", default=str(resolve_datasets_root() / "norton_shapes"), help="folder to write"
    )
    args_parser.add_argument("--train", type=int, default=400, help="training images")
    args_parser.add_argument("--val", type=int, default=100, help="validation images")
    args_parser.add_argument("--height", type=int, default=192, help="pixels")
    args_parser.add_argument("--width", type=int, default=256, help="pixels")
    args_parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same data")
    args_parser.add_argument("--smallest", type=int, default=0, help="least size of a shape in pixels: an easier set")
    args_parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = args_parser.parse_args()
    drawn = 0

    def advance(images: int) -> None:
        nonlocal drawn
        drawn += images
        bar.update(images)

    with tqdm(total=max(0, args.train) + max(0, args.val), unit="image", disable=None) as bar:
        root = generate_dataset(
            args.root,
            train=args.train,
            val=args.val,
            height=args.height,
            width=args.width,
            seed=args.seed,
            smallest=args.smallest,
            progress=advance,
        )
        bar.leave = drawn > 0
    reused = drawn == 0
    if args.json:
        print(json.dumps({"root": str(root), "train": args.train, "val": args.val, "reused": reused}))
    else:
        print(f"{root}: {args.train} training and {args.val} validation images{' (already there)' if reused else ''}")


if __name__ == "__main__":
    run(main)

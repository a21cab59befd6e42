"""The work of ``norton-det prepare generated``; ``options/prepare_generated.py`` says what it is."""

import argparse
import json

from tqdm import tqdm

from ..data import generate_dataset


def main(args: argparse.Namespace) -> None:
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

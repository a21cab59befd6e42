"""The work of ``norton-det prepare bccd``; ``options/prepare_bccd.py`` says what it is."""

import argparse

from tqdm import tqdm

from ..data.voc import BCCD_CLASSES, BCCD_SPLITS, convert_voc, remarks_on


def main(args: argparse.Namespace) -> None:
    with tqdm(unit="image", disable=None) as bar:
        contents = convert_voc(args.source, args.root, splits=BCCD_SPLITS, classes=BCCD_CLASSES, progress=bar.update)
    print(f"{args.root}: annotations and images of train, val and test")
    for split, content in contents.items():
        if remarks := remarks_on(content):
            print(f"{split}: {remarks}")

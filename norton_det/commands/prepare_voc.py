"""The work of ``norton-det prepare voc``; ``options/prepare_voc.py`` says what it is."""

import argparse

from tqdm import tqdm

from ..data.voc import convert_voc, remarks_on


def main(args: argparse.Namespace) -> None:
    names = {name: getattr(args, name).split(",") for name in ("splits", "classes") if getattr(args, name)}
    with tqdm(unit="image", disable=None) as bar:
        contents = convert_voc(args.source, args.root, first_pixel=args.first_pixel, progress=bar.update, **names)
    for split, content in contents.items():
        remarks = remarks_on(content)
        print(
            f"{args.root}: {split}: {len(content['images'])} images, {len(content['annotations'])} objects"
            f"{f' ({remarks})' if remarks else ''}"
        )
    classes = [category["name"] for category in next(iter(contents.values()))["categories"]]
    print(f"MODEL.ROI_HEADS.NUM_CLASSES {len(classes)}: {', '.join(classes)}")

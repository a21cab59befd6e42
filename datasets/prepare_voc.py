#!/usr/bin/env python3
"""Convert a folder in Pascal VOC's layout (Annotations, JPEGImages, ImageSets/Main) to COCO's format.

Splits are those of ImageSets/Main; without such lists all images are one, called "all"."""

from tqdm import tqdm

from norton_det.cli import parser, run
from norton_det.data.voc import convert_voc

EXAMPLES = """
  python datasets/prepare_voc.py VOCdevkit/VOC2012 datasets/voc2012 --first-pixel 1
  python datasets/prepare_voc.py parts datasets/parts --splits train,test --classes bolt,nut

Then: tools/train_net.py --register voc_train=datasets/voc2012/annotations/train.json:datasets/voc2012/train ...
"""


def main() -> None:
    own = parser(__doc__, EXAMPLES)
    own.add_argument("source", help="folder with Annotations and JPEGImages")
    own.add_argument("root", help="folder to write")
    own.add_argument("--splits", metavar="A,B", help="lists in ImageSets/Main; by default train, val, trainval, test")
    own.add_argument("--classes", metavar="A,B", help="in the order of their category ids; by default all, sorted")
    own.add_argument("--first-pixel", type=int, choices=(0, 1), default=0, help="VOC's own boxes count from 1")
    args = own.parse_args()
    names = {name: getattr(args, name).split(",") for name in ("splits", "classes") if getattr(args, name)}
    with tqdm(unit="image", disable=None) as bar:
        contents = convert_voc(args.source, args.root, first_pixel=args.first_pixel, progress=bar.update, **names)
    for split, content in contents.items():
        print(f"{args.root}: {split}: {len(content['images'])} images, {len(content['annotations'])} objects")
    classes = [category["name"] for category in next(iter(contents.values()))["categories"]]
    print(f"MODEL.ROI_HEADS.NUM_CLASSES {len(classes)}: {', '.join(classes)}")


if __name__ == "__main__":
    run(main)

#!/usr/bin/env python3
"""Convert BCCD (blood cells, Pascal VOC XML) to COCO's format, as register_bccd and the configs expect it."""

from tqdm import tqdm

from norton_det.cli import parser, run
from norton_det.data import resolve_datasets_root
from norton_det.data.voc import BCCD_CLASSES, BCCD_SPLITS, convert_voc

EXAMPLES = """
  python datasets/prepare_bccd.py BCCD_Dataset/BCCD                    to where Detectron2 looks for data
  python datasets/prepare_bccd.py BCCD_Dataset/BCCD /tmp/bccd

Then: DATASETS.TRAIN "('bccd_train',)" DATASETS.TEST "('bccd_val',)" MODEL.ROI_HEADS.NUM_CLASSES 3
"""


def main() -> None:
    args_parser = parser(__doc__, EXAMPLES)
    args_parser.add_argument("source", help="folder with Annotations, ImageSets and JPEGImages")
    args_parser.add_argument("root", nargs="?", default=str(resolve_datasets_root() / "bccd"), help="folder to write")
    args = args_parser.parse_args()
    with tqdm(unit="image", disable=None) as bar:
        convert_voc(args.source, args.root, splits=BCCD_SPLITS, classes=BCCD_CLASSES, progress=bar.update)
    print(f"{args.root}: annotations and images of train, val and test")


if __name__ == "__main__":
    run(main)

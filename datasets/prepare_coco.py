#!/usr/bin/env python3
"""Check COCO 2017 where Detectron2 looks for it, and download what is missing (20 GB; 1 GB with --val-only).

Downloads go on where they stopped, are checked by their MD5, and are kept in ROOT/archives unless --clean is given."""

import shutil
from pathlib import Path

from norton_det.cli import parser, run
from norton_det.data import resolve_coco_root
from norton_det.data.coco2017 import archives_for, check_coco
from norton_det.data.download import download, unpack
from norton_det.errors import InputError

EXAMPLES = """
  python datasets/prepare_coco.py --check                    # what is there, and what is not
  python datasets/prepare_coco.py --val-only                 # enough to evaluate
  python datasets/prepare_coco.py /data/coco --clean         # then: export DETECTRON2_DATASETS=/data
"""


def main() -> None:
    own = parser(__doc__, EXAMPLES)
    own.add_argument("root", nargs="?", default=str(resolve_coco_root()), help="folder of COCO 2017")
    own.add_argument("--check", action="store_true", help="download nothing")
    own.add_argument("--val-only", action="store_true", help="leave the training images out")
    own.add_argument("--clean", action="store_true", help="delete the archives at the end")
    args = own.parse_args()
    root, splits = Path(args.root), ("val",) if args.val_only else ("train", "val")
    parts = check_coco(root, splits)
    needed = archives_for(parts)
    if needed and not args.check:
        size = sum(archive.size for archive in needed)
        print(f"{root}: {', '.join(archive.name for archive in needed)}: {size / 1e9:.1f} GB to download", flush=True)
        for archive in needed:
            unpack(download(archive, root / "archives"), root)
        parts = check_coco(root, splits)
    for part in parts:
        print(f"{part.name:45} {part.problem or 'whole'}")
    if broken := [part.name for part in parts if part.problem]:
        mend = "run it without --check" if args.check else f"delete them and {root / 'archives'}, and run it again"
        raise InputError(f"{root}: expected COCO 2017, {len(broken)} parts are not whole; {mend}")
    if args.clean:
        shutil.rmtree(root / "archives", ignore_errors=True)


if __name__ == "__main__":
    run(main)

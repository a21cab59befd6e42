"""The work of ``norton-det prepare coco``; ``options/prepare_coco.py`` says what it is."""

import argparse
import shutil
from pathlib import Path

from ..data.coco2017 import archives_for, check_coco
from ..utils.download import download, unpack
from ..utils.errors import InputError


def main(args: argparse.Namespace) -> None:
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

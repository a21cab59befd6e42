#!/usr/bin/env python3
"""Write docs/tools.md from the help of every command, docs/configuration.md from the config keys and their comments.

With --check nothing is written; the exit status is 1 where a page is not what it would be."""

import argparse
import sys
from pathlib import Path

from norton_det.commands.parser import command_parser, importing, run

with importing():
    from reference import command_pages, config_page

    from norton_det.utils.files import write_text

EXAMPLES = """
  tools/make_reference.py                  both pages
  tools/make_reference.py --check          exit status 1 and the names of the pages that are old
"""
REPOSITORY = Path(__file__).resolve().parent.parent


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--check", action="store_true", help="compare with the pages that are there, write nothing")
    parser.add_argument("--output", metavar="DIR", help="folder of the pages; by default docs of this repository")
    return parser


def main() -> int:
    args = make_parser().parse_args()
    folder = Path(args.output) if args.output else REPOSITORY / "docs"
    pages = {
        "tools.md": command_pages.tools_page(command_pages.commands(REPOSITORY)),
        "configuration.md": config_page.configuration_page(REPOSITORY),
    }
    old = [name for name, text in pages.items() if not _same(folder / name, text)]
    for name in old:
        if args.check:
            print(f"{folder / name}: old; run tools/make_reference.py", file=sys.stderr)
            continue
        write_text(folder / name, pages[name])
        print(folder / name)
    return 1 if args.check and old else 0


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    run(main)

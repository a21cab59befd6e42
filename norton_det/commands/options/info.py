"""What is here: versions, devices, optional packages (and what installs those that are missing), configs, the zoo."""

import argparse

from ..parser import command_parser

EXAMPLES = """
  norton-det info
  norton-det info --json
  python -m norton_det              the same
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser

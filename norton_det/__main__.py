"""``python -m norton_det``: the same command line as ``norton-det``; without arguments it shows what is here."""

import sys

from .commands.main import entry

if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("info")
    entry()

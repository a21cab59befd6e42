"""The tests, laid out as the package is; what is of the whole repository stands beside this file."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

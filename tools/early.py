"""norton_det.cli without the package around it, whose import takes seconds.

A tool that takes its ``parser`` and ``run`` from here, and imports the package in ``main`` when its options are parsed,
answers --help and wrong options at once.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def _load() -> ModuleType:
    package = importlib.util.find_spec("norton_det")  # found, not imported
    if package is None or package.origin is None:
        sys.exit("error: expected the package norton_det, found none; run: make setup")
    spec = importlib.util.spec_from_file_location("norton_det_cli", Path(package.origin).with_name("cli.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_cli = _load()
importing, parser, refuse, run = _cli.importing, _cli.parser, _cli.refuse, _cli.run

"""``norton-det COMMAND ...``, ``python -m norton_det COMMAND ...`` and the scripts of a clone (``tools/NAME.py``).

A command is parsed before anything heavy is imported: help and wrong options answer at once, without optional packages.
"""

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from .. import __version__
from ..utils.errors import InputError
from ..utils.extras import explained
from ..utils.machine import prepare_threads
from .parser import importing, run

PROG = "norton-det"


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        module: the name that its two modules share.
        text: what it does, in one line.
        script: of a clone, which calls it; ``None`` where there is none.
    """

    module: str
    text: str
    script: str | None


COMMANDS = {
    "compress": Command("compress", "make a ResNet or a whole detector smaller", "tools/compress.py"),
    "train": Command("train_net", "train or evaluate a Detectron2 R-CNN, dense or compressed", "tools/train_net.py"),
    "finetune": Command("finetune", "fine-tune a classifier, taught by the dense one", "tools/finetune.py"),
    "evaluate": Command("evaluate", "Top-1 and Top-5 of a classifier", "tools/evaluate.py"),
    "evaluate-detector": Command(
        "evaluate_detector", "COCO AP of a detector in any form it runs in", "tools/evaluate_detector.py"
    ),
    "export": Command("export", "write a detector for ONNX Runtime or OpenVINO", "tools/export.py"),
    "demo": Command("demo", "a detector at work on a camera, a video or pictures", "tools/demo.py"),
    "serve": Command("serve", "the same as a page for the browser's camera", "tools/serve.py"),
    "benchmark": Command("benchmark", "latency, FPS and memory beside the dense detector's", "tools/benchmark.py"),
    "benchmark-compression": Command(
        "benchmark_compression", "time of the compression beside plain loops", "tools/benchmark_compression.py"
    ),
    "complexity": Command(
        "analyze_complexity", "MACs and parameters, published and counted", "tools/analyze_complexity.py"
    ),
    "compare": Command("compare", "train detectors under one budget, over seeds", "tools/compare.py"),
    "tradeoff": Command("tradeoff", "AP against milliseconds, over levels and ranks", "tools/tradeoff.py"),
    "visualize": Command(
        "visualize_results", "pictures of predictions beside annotations; plots of AP", "tools/visualize_results.py"
    ),
    "grad-cam": Command("grad_cam", "where the dense and the compressed classifier look", "tools/grad_cam.py"),
    "zoo": Command("zoo", "networks, what is published of them, and their weights", None),
    "info": Command("info", "versions, devices, engines and extras here", None),
    "prepare coco": Command("prepare_coco", "check COCO 2017, or download it", "datasets/prepare_coco.py"),
    "prepare bccd": Command("prepare_bccd", "convert BCCD, blood cells", "datasets/prepare_bccd.py"),
    "prepare voc": Command("prepare_voc", "convert a folder in Pascal VOC's layout", "datasets/prepare_voc.py"),
    "prepare generated": Command(
        "prepare_generated", "draw a data set; nothing is downloaded", "datasets/prepare_generated.py"
    ),
}
GROUPS = {"prepare": "check, convert or draw data sets"}  # words with commands below them
_ANY = re.compile(rf"(?:python3? )?(?:-m norton_det|{PROG}) ({'|'.join(sorted(COMMANDS, key=len, reverse=True))})\b")


def entry() -> NoReturn:
    """What the console script ``norton-det`` and ``python -m norton_det`` run."""
    run(lambda: main(sys.argv[1:]))


def main(words: Sequence[str]) -> int | None:
    """The command that the words begin with; its exit status.

    Raises:
        InputError: there is no such command; the nearest name is told.
    """
    first, *rest = words or ["--help"]
    if first == "help" and rest:
        return main([*rest, "--help"])
    if first in ("--help", "-h", "help"):
        print(overview(), end="")
        return 0
    if first == "--version":
        print(f"norton_det {__version__}")
        return 0
    if first in GROUPS:
        if not rest or rest[0] in ("--help", "-h"):
            print(overview(first), end="")
            return 0 if rest else 2
        _check_name(
            rest[0], [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{first} ")], f"{first}: "
        )
        return call(f"{first} {rest[0]}", rest[1:], f"{PROG} {first} {rest[0]}")
    _check_name(first, [name for name in [*COMMANDS, *GROUPS] if " " not in name], "")
    return call(first, rest, f"{PROG} {first}")


def tool(name: str) -> NoReturn:
    """What the script of a command runs; its help shows the commands as the scripts that they are in a clone."""
    run(lambda: call(name, sys.argv[1:], COMMANDS[name].script or name, as_script=True))


def call(name: str, words: Sequence[str], prog: str, as_script: bool = False) -> int | None:
    """Parse the words, then import the command and run it; its exit status.

    Raises:
        InputError: bad input, or an optional package that is needed and missing.
    """
    options = import_module(f"{__package__}.options.{COMMANDS[name].module}")
    parser = options.make_parser()
    parser.prog = prog
    if as_script:
        parser.spelling = scripts_for_commands
    args = parser.parse_args(words)
    if hasattr(options, "check"):
        options.check(args)
    prepare_threads()
    try:
        with importing():
            command = import_module(f"{__package__}.{COMMANDS[name].module}")
        return command.main(args)
    except ModuleNotFoundError as error:
        if (missing := explained(error)) is None:
            raise
        raise missing from None


def overview(group: str = "") -> str:
    """What ``--help`` prints: each command with its line."""
    names = [name for name in COMMANDS if (name.startswith(f"{group} ") if group else " " not in name)]
    lines = {name: COMMANDS[name].text for name in names}
    if not group:
        lines |= GROUPS
    width = max(map(len, lines))
    about = GROUPS.get(group) or "small, fast R-CNN detectors by NORTON: CP decomposition, then pruning"
    return "\n".join(
        [
            f"usage: {PROG} {f'{group} ' if group else ''}COMMAND ...",
            "",
            about,
            "",
            *(f"  {name:{width}}  {text}" for name, text in lines.items()),
            "",
            f"{PROG} {f'{group} ' if group else ''}COMMAND --help shows its options and examples",
            "",
        ]
    )


def scripts_for_commands(text: str) -> str:
    """A text whose commands are those of a clone: ``tools/compress.py`` for ``norton-det compress``."""

    def script(match: re.Match[str]) -> str:
        path = COMMANDS[match[1]].script
        if path is None:
            return match[0]
        return f"python {path}" if path.startswith("datasets/") else path

    return _ANY.sub(script, text)


def _check_name(name: str, names: list[str], where: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        mend = f"did you mean {near[0]}?" if near else f"see {PROG} --help"
        raise InputError(f"{where}expected a command of {', '.join(names)}, got {name!r}; {mend}")

"""What the commands in tools/ share: one-line errors with exit status 2, help with worked examples.

A command imports this module before all others: it hides what libraries say of their own future, which a user
of the command can do nothing about.
"""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from .errors import InputError

warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", r"torch\.meshgrid: in an upcoming release", UserWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def parser(description: str | None, examples: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` ends with worked examples and names each default.

    Args:
        description: what the command does, the tool's docstring.
        examples: one command a line.
    """

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action: argparse.Action) -> str | None:
            if action.default in (None, False, [], ""):
                return action.help  # "(default: None)" tells nobody anything
            return super()._get_help_string(action)

    return argparse.ArgumentParser(
        description=description, epilog=f"examples:\n{examples.strip(chr(10))}", formatter_class=Formatter
    )


def add_image_options(own: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flags for the size of a classifier's images, and for the names of its classes."""
    own.add_argument("--image-size", type=int, metavar="S", help="side of the crop; by default 7/8 of --resize")
    own.add_argument(
        "--resize",
        type=int,
        metavar="S",
        help="short side before the crop; by default 8/7 of --image-size, or 256, or what smaller images have",
    )


def add_configs(own: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    """``--config``, to be repeated."""
    own.add_argument(
        "--config-file", "--config", action="append", default=[], required=required, metavar="FILE", help=text
    )


def add_train_size(own: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The size of random crops in training, apart from that of evaluation."""
    own.add_argument(
        "--train-size",
        type=int,
        metavar="S",
        help="side of the random crops of training; smaller ones are faster; by default that of evaluation",
    )


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a tool's ``main`` and exit: 0 done, 2 bad input (``error:`` and one line), 128 and more a signal."""
    try:
        status = main()
        sys.stdout.flush()  # here, where a reader that has gone is met below
    except InputError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)  # names of files may hold line breaks
        status = 2
    except KeyboardInterrupt as error:
        print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        status = 128 + getattr(error, "number", signal.SIGINT)
    except BrokenPipeError:  # `tool | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)

"""What the commands share: one-line errors with exit status 2, help with worked examples.

A command imports this module before all others: it hides what libraries say of their own future, which a user
of the command can do nothing about. It imports nothing that takes time.
"""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from ..utils.errors import FULL, InputError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", r"torch\.meshgrid: in an upcoming release", UserWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


class Parser(argparse.ArgumentParser):
    """A parser that can spell commands in its help as the user has called them."""

    spelling: Callable[[str], str] = staticmethod(str)  # of the whole text

    def format_help(self) -> str:
        return self.spelling(super().format_help())

    def print_help(self, file: "SupportsWrite[str] | None" = None) -> None:
        """As argparse's, which passes over what goes wrong in writing."""
        print(self.format_help(), end="", file=file)


def command_parser(description: str | None, examples: str) -> Parser:
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

    return Parser(description=description, epilog=f"examples:\n{examples.strip(chr(10))}", formatter_class=Formatter)


def add_image_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flags for the size of a classifier's images."""
    parser.add_argument("--image-size", type=int, metavar="S", help="side of the crop; by default 7/8 of --resize")
    parser.add_argument(
        "--resize",
        type=int,
        metavar="S",
        help="short side before the crop; by default 8/7 of --image-size, or 256, or what smaller images have",
    )


def add_configs(parser: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    """The flag ``--config``, which may be repeated."""
    parser.add_argument(
        "--config-file", "--config", action="append", default=[], required=required, metavar="FILE", help=text
    )


def add_train_size(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flag for the size of random crops in training, apart from that of evaluation."""
    parser.add_argument(
        "--train-size",
        type=int,
        metavar="S",
        help="side of the random crops of training; smaller ones are faster; by default that of evaluation",
    )


def tell_skipped(reasons: Mapping[Any, str]) -> None:
    """Print a line for each picture that is passed over."""
    for path, reason in reasons.items():
        print(f"skipped, {reason}: {path}")


@contextmanager
def importing() -> Iterator[None]:
    """While a command imports what it needs, Ctrl-C ends it at once: libraries make errors of their own of it."""

    def end(*_: object) -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def refuse(message: str) -> NoReturn:
    """End a command that was given bad input: ``error:`` and one line, exit status 2."""
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)  # names of files may hold line breaks
    sys.exit(2)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's ``main`` and exit.

    The status is 0 where it was done, 1 where there was no space for what it wrote, 2 for bad input, 128 and more for a
    signal; one line on stderr says why it is not 0.
    """
    status: int | str | None
    try:
        try:
            status = main()
        except SystemExit as ended:  # of argparse, after --help
            status = ended.code
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that has gone is met below
    except InputError as error:
        refuse(str(error))
    except KeyboardInterrupt as error:
        print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        status = 128 + getattr(error, "number", signal.SIGINT)
    except BrokenPipeError:  # `tool | head`: the reader has what it wanted
        _discard_output()
        status = 0
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or "output"
        print(f"error: {where}: could not be written ({error.strerror}); free some space", file=sys.stderr)
        _discard_output()
        status = 1
    sys.exit(status)


def _discard_output() -> None:
    """Send what stdout still holds nowhere: the interpreter would fail on it once more as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

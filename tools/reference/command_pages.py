"""The page of all commands, from the parsers that their --help prints.

Every command is asked for its help in this process, twice, as on two machines: with and without a GPU, as two users. A
default that differs depends on the machine, and is described instead of printed. The layout is made here and not by
argparse, whose own differs from one version of Python to the next.
"""

import argparse
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from norton_det.errors import InputError

from .markdown import cell, plain

INTRODUCTION = """# Commands

Every command with its options, as `--help` tells them; `tools/make_reference.py` writes this page. They run from the
folder of the repository. Bad input ends a command with `error:`, one line and exit status 2; Ctrl-C with 130. Back to
the [README](../README.md); the keys of configs are in [configuration.md](configuration.md).
"""
BY_MACHINE = {  # defaults that depend on the machine
    "--device": "`cuda` where there is a GPU, else `cpu`",
    "--dist-url": "`tcp://127.0.0.1:PORT`, a port by the user's number",
}

MANY = 4  # choices: more are listed with the text, not with the option
Run = Callable[[], object]


def commands(repository: Path) -> Iterator[tuple[str, Run]]:
    """Name of every command, and a function that runs it with the words of ``sys.argv``: the one place that knows
    where commands are.
    """
    files = [path for folder in ("tools", "datasets") for path in sorted((repository / folder).glob("*.py"))]
    for path in files:
        if os.access(path, os.X_OK) and "parser(" in path.read_text(encoding="utf-8"):
            name = path.relative_to(repository).as_posix()
            yield name, lambda path=path: runpy.run_path(str(path), run_name="__main__")


def tools_page(found: Iterator[tuple[str, Run]]) -> str:
    """The whole page: an overview, then a section for each command."""
    overview, sections = ["", "| command | what it does |", "| --- | --- |"], []
    for name, start in found:
        first, second = (parser_of(name, start, *machine) for machine in ((False, 0), (True, 1)))
        text = (first.description or "").strip()
        anchor = name.replace("/", "").replace(".", "").replace(" ", "-")
        overview.append(f"| [{name}](#{anchor}) | {cell(_sentence(text))} |")
        sections.append(section(name, text, first, second))
    return INTRODUCTION + "\n".join(overview) + "\n" + "".join(sections)


class _Found(BaseException):
    """The parser that a command was about to print the help of."""


def parser_of(name: str, start: Run, gpu: bool, user: int) -> argparse.ArgumentParser:
    """The parser of a command, as it is on a machine with or without a GPU for the user of that number."""

    def stop(self: argparse.ArgumentParser, file: object = None) -> None:
        raise _Found(self)

    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", stop),
        mock.patch.object(sys, "argv", [name, "--help"]),
        mock.patch("torch.cuda.is_available", lambda: gpu),
        mock.patch("os.getuid", lambda: user, create=True),
    ):
        try:
            start()
        except _Found as found:
            return found.args[0]
        except SystemExit as ended:
            raise InputError(f"{name}: expected help, got exit status {ended.code}; mend its --help") from None
    raise InputError(f"{name}: expected a parser that prints help, got none; leave it out of commands()")


def section(name: str, text: str, first: argparse.ArgumentParser, second: argparse.ArgumentParser) -> str:
    """One command: what it does, a table of options for each of its groups, its worked examples."""
    lines = ["", f"## {name}", "", "\n\n".join(map(_paragraph, text.split("\n\n")))]
    for own, other in zip(first._action_groups, second._action_groups, strict=True):
        pairs = [
            pair
            for pair in zip(own._group_actions, other._group_actions, strict=True)
            if pair[0].help != argparse.SUPPRESS and not isinstance(pair[0], argparse._HelpAction)
        ]
        if not pairs:
            continue
        if own.title not in ("positional arguments", "options"):
            lines += ["", f"{own.title}:" if not own.description else f"{own.title}: {own.description}"]
        lines += ["", "| option | default | what it does |", "| --- | --- | --- |"]
        lines += [f"| {_names(own)} | {_default(name, own, other)} | {_help(own)} |" for own, other in pairs]
    for group in first._mutually_exclusive_groups:
        names = ", ".join(f"`{action.option_strings[0]}`" for action in group._group_actions)
        lines += ["", f"{'One' if group.required else 'At most one'} of {names}."]
    examples = (first.epilog or "").removeprefix("examples:").strip("\n")
    examples = "\n".join(line.removeprefix("  ") for line in examples.splitlines())
    return "\n".join([*lines, "", "```text", examples, "```", ""])


def _names(action: argparse.Action) -> str:
    value = _value(action)
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(f"`{option}{' ' if value else ''}{value}`" for option in action.option_strings)


def _value(action: argparse.Action) -> str:
    """How the value of an option is written: ``FILE``, ``H W``, ``[N]``, ``KEY ...``."""
    if action.nargs == 0:
        return ""
    name: Any = action.metavar
    if name is None and action.choices and len(list(action.choices)) <= MANY:
        name = f"{{{','.join(map(str, action.choices))}}}"
    elif name is None:
        name = action.dest.upper() if action.option_strings else action.dest
    if isinstance(name, tuple):
        return " ".join(name)
    if isinstance(action.nargs, int):
        return " ".join([name] * action.nargs)
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ...", "...": f"{name} ..."}.get(
        action.nargs or "", name
    )


def _default(command: str, own: argparse.Action, other: argparse.Action) -> str:
    if own.default != other.default:
        known = [BY_MACHINE[option] for option in own.option_strings if option in BY_MACHINE]
        if not known:
            raise InputError(
                f"{command}: {own.option_strings[0]}: expected a default that is the same on all machines, got "
                f"{own.default} and {other.default}; add it to BY_MACHINE"
            )
        return known[0]
    if own.required and own.nargs not in ("*", argparse.REMAINDER):  # of which Python says so, too
        return "required"
    if own.default in (None, False, [], "") or own.default == argparse.SUPPRESS:
        return ""
    value = own.default
    return f"`{' '.join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value}`"


def _help(action: argparse.Action) -> str:
    fields = vars(action) | {"prog": ""}
    text = cell((action.help or "") % fields)
    if action.choices and len(list(action.choices)) > MANY:
        text += f": {', '.join(f'`{choice}`' for choice in action.choices)}"
    return text


def _paragraph(text: str) -> str:
    """Aligned columns stay as they are, all else is running text."""
    aligned = all(re.match(r"\S+ {2,}\S", line) for line in text.splitlines())
    return f"```text\n{text}\n```" if aligned else plain(text)


def _sentence(text: str) -> str:
    """The first sentence, in one line."""
    return re.split(r"(?<=\.)\s", text.partition("\n\n")[0], maxsplit=1)[0].replace("\n", " ")

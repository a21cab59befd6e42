"""The page of all commands, from the parsers that their --help prints.

Every command is asked for its help in this process. The layout is made here and not by argparse, whose own differs from
one version of Python to the next.
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

from norton_det.commands.main import COMMANDS, PROG, call
from norton_det.utils.errors import InputError

from .markdown import cell, plain

INTRODUCTION = """# Commands

Every command with its options, as `--help` tells them; `tools/make_reference.py` writes this page. Once norton_det is
installed, `norton-det COMMAND` runs anywhere; `python -m norton_det COMMAND` and, in a clone, the script named beside
it are the same. Bad input ends a command with `error:`, one line and exit status 2; Ctrl-C with 130. Back to the
[README](../README.md); the keys of configs are in [configuration.md](configuration.md).
"""
MANY = 4  # choices: more are listed with the text, not with the option
Run = Callable[[], object]


def commands(repository: Path) -> Iterator[tuple[str, Run]]:
    """Name of every command, and a function that runs it with the words of ``sys.argv``: the one place that knows
    where commands are.
    """
    for name in COMMANDS:
        yield f"{PROG} {name}", lambda name=name: call(name, ["--help"], f"{PROG} {name}")
    for path in sorted((repository / "tools").glob("*.py")):  # those that make sense in a clone only
        if os.access(path, os.X_OK) and "parser(" in path.read_text(encoding="utf-8"):
            name = path.relative_to(repository).as_posix()
            yield name, lambda path=path: runpy.run_path(str(path), run_name="__main__")


def tools_page(found: Iterator[tuple[str, Run]]) -> str:
    """The whole page: an overview, then a section for each command."""
    overview, sections = ["", "| command | in a clone | what it does |", "| --- | --- | --- |"], []
    for name, start in found:
        parser = parser_of(name, start)
        text = (parser.description or "").strip()
        anchor = name.replace("/", "").replace(".", "").replace(" ", "-")
        known = COMMANDS.get(name.removeprefix(f"{PROG} "))
        script = f"`{known.script}`" if known and known.script else "" if known else "only there"
        overview.append(f"| [{name}](#{anchor}) | {script} | {cell(_sentence(text))} |")
        sections.append(section(name, text, parser))
    return INTRODUCTION + "\n".join(overview) + "\n" + "".join(sections)


class _Found(BaseException):
    """The parser that a command was about to print the help of."""


def parser_of(name: str, start: Run) -> argparse.ArgumentParser:
    """The parser of a command."""

    def stop(self: argparse.ArgumentParser) -> str:
        raise _Found(self)

    with (
        mock.patch.object(argparse.ArgumentParser, "format_help", stop),
        mock.patch.object(sys, "argv", [name, "--help"]),
    ):
        try:
            start()
        except _Found as found:
            return found.args[0]
        except SystemExit as ended:
            raise InputError(f"{name}: expected help, got exit status {ended.code}; mend its --help") from None
    raise InputError(f"{name}: expected a parser that prints help, got none; leave it out of commands()")


def section(name: str, text: str, parser: argparse.ArgumentParser) -> str:
    """One command: what it does, a table of options for each of its groups, its worked examples."""
    lines = ["", f"## {name}", "", "\n\n".join(map(_paragraph, text.split("\n\n")))]
    for group in parser._action_groups:
        shown = [
            action
            for action in group._group_actions
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
        ]
        if not shown:
            continue
        if group.title not in ("positional arguments", "options"):
            lines += ["", f"{group.title}:" if not group.description else f"{group.title}: {group.description}"]
        lines += ["", "| option | default | what it does |", "| --- | --- | --- |"]
        lines += [f"| {_names(action)} | {_default(action)} | {_help(action)} |" for action in shown]
    for group in parser._mutually_exclusive_groups:
        names = ", ".join(f"`{(action.option_strings or [_value(action)])[0]}`" for action in group._group_actions)
        lines += ["", f"{'One' if group.required else 'At most one'} of {names}."]
    examples = (parser.epilog or "").removeprefix("examples:").strip("\n")
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


def _default(own: argparse.Action) -> str:
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

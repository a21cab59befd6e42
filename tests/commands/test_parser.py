"""What the commands share: exit status, one-line errors, help that shows examples and defaults."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from norton_det.commands.parser import command_parser, run
from norton_det.utils.errors import InputError


def ended(main, capsys) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        run(main)
    return caught.value.code, *capsys.readouterr()


def raises(error):
    def main():
        print("so far")
        raise error

    return main


def test_status(capsys):
    assert ended(lambda: None, capsys) == (None, "", "")  # sys.exit(None) is status 0
    assert ended(lambda: 3, capsys)[0] == 3
    message = "a.json: expected JSON, got text; write it again"
    assert ended(raises(InputError(message)), capsys) == (2, "so far\n", f"error: {message}\n")
    assert ended(raises(InputError("a\nb: expected c")), capsys)[2] == "error: a b: expected c\n"
    assert ended(raises(KeyboardInterrupt()), capsys) == (130, "so far\n", "interrupted\n")


def test_a_programming_error_keeps_its_traceback():
    for error in (ValueError("x"), KeyError("x"), AssertionError()):
        with pytest.raises(type(error)):
            run(raises(error))


def process(code: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("lines", [20000, 2], ids=["long", "short"])
def test_a_reader_that_has_seen_enough(lines):
    """``tool | head -1`` ends quietly, also where the reader has gone before anything is written."""
    code = (
        "import sys\nfrom norton_det.commands.parser import run\nsys.stdin.read(1)\n"
        f"run(lambda: [print(n, 'x' * 100) for n in range({lines})] and None)"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", code], **pipes, env=buffered)
    process.stdout.close()
    assert process.communicate(b"x", timeout=60)[1] == b"" and process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk without space")
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "at once"])
@pytest.mark.parametrize("words", [["--help"], ["zoo"], ["zoo", "--help"]], ids=" ".join)
def test_no_space_for_the_output(words, buffered):
    environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "norton_det", *words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=60, check=False
        )
    reason = os.strerror(errno.ENOSPC)
    assert done.stderr == f"error: output: could not be written ({reason}); free some space\n"
    assert done.returncode == 1


def test_a_file_that_cannot_be_opened_keeps_its_traceback():
    with pytest.raises(FileNotFoundError):
        run(raises(FileNotFoundError(errno.ENOENT, "no such file")))


def test_exit_status_of_a_process():
    code = "from norton_det.commands.parser import run\nfrom norton_det.utils.errors import InputError\n"
    done = process(code + "def main(): raise InputError('expected a, got b; use a')\nrun(main)")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: expected a, got b; use a\n")
    assert process(code + "run(lambda: None)").returncode == 0


def test_help(capsys):
    parser = command_parser("Does a thing.\n\nIn two paragraphs.", "\n  tool --size 3   with three\n  tool\n")
    parser.add_argument("--size", type=int, default=4, help="how large")
    parser.add_argument("--name", help="whose")
    parser.add_argument("--more", action="append", default=[], help="again and again")
    parser.add_argument("--quiet", action="store_true", help="no words")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "Does a thing.\n\nIn two paragraphs." in text  # line breaks are kept
    assert text.endswith("examples:\n  tool --size 3   with three\n  tool\n")
    assert "how large (default: 4)" in text
    assert text.count("(default") == 1  # nothing is said of None, False and empty lists


def test_unknown_flags(capsys):
    with pytest.raises(SystemExit) as caught:
        command_parser("Does a thing.", "  tool").parse_args(["--sise", "3"])
    assert caught.value.code == 2 and "--sise" in capsys.readouterr().err

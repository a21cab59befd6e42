"""Files are whole or not there, whatever interrupts the writing."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from norton_det.utils.errors import InputError
from norton_det.utils.files import atomic_path, require_file, require_writable, write_text


def test_written_whole_with_the_usual_permissions(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    assert os.listdir(target.parent) == ["file.txt"]


def test_text_is_written_in_utf8_and_replaces_what_was_there(tmp_path):
    target = tmp_path / "file.md"
    for text in ("longer than what follows", "1.50 ± 0.71\n"):
        write_text(target, text)
        assert target.read_bytes() == text.encode()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error("stop")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_killed_process_leaves_no_half_file(tmp_path):
    """SIGKILL runs no clean-up: the target must still be absent."""
    code = (
        "import sys, time\nfrom norton_det.utils.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "file.txt"
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == "writing"
        process.kill()
    assert not target.exists()


def test_a_full_disk_is_told_in_one_line(tmp_path):
    target = tmp_path / "file.txt"
    with pytest.raises(InputError, match=r"could not be written .*free some space"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_name_as_long_as_names_may_be(tmp_path):
    """The temporary file's may not be longer."""
    target = tmp_path / ("ü" * 125 + ".txt")  # 254 bytes
    for text in ("one", "two"):
        write_text(target, text)
    assert target.read_text() == "two" and len(os.listdir(tmp_path)) == 1


def test_readers_never_see_a_half_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("a" * 100_000)
    for letter in "bc":
        with atomic_path(target) as temporary:
            with temporary.open("w") as file:
                file.write(letter * 50_000)
                file.flush()
                assert len(target.read_text()) == 100_000
                file.write(letter * 50_000)
            time.sleep(0)
        assert target.read_text() == letter * 100_000


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="got a folder; give a file name"), atomic_path(tmp_path):
        pass
    with pytest.raises(InputError, match="cannot write here"), atomic_path(tmp_path / "file" / "below"):
        pass
    with pytest.raises(InputError, match="cannot write in"):
        require_writable(tmp_path / ("n" * 300))
    for name in ("n" * 300, "a\0b"):
        with pytest.raises(InputError, match="cannot write here"), atomic_path(tmp_path / name):
            pass
        with pytest.raises(InputError, match="found no such file"):
            require_file(tmp_path / name, "weights")


def test_require_file_says_what_is_wrong(tmp_path):
    good, empty = tmp_path / "good", tmp_path / "empty"
    good.write_text("x")
    empty.touch()
    assert require_file(str(good), "weights") == Path(good)
    for path, message in (
        (tmp_path, "expected weights, got a folder"),
        (tmp_path / "none", "expected weights, found no such file"),
        (empty, "expected weights, got an empty file"),
    ):
        with pytest.raises(InputError, match=message):
            require_file(path, "weights")

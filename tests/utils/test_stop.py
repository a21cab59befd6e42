"""Signals end a block at a moment when its state is whole."""

import os
import signal
import threading

import pytest
import torch
from torch import nn

from norton_det.utils.errors import InputError
from norton_det.utils.files import atomic_path, hold_folder
from norton_det.utils.stop import Interrupted, StopOnSignal, remember_statistics


def test_a_signal_is_raised_at_once_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(Interrupted) as caught, StopOnSignal():
            os.kill(os.getpid(), number)
        assert caught.value.number == number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_waits_while_the_state_is_not_whole():
    done = []
    with pytest.raises(Interrupted), StopOnSignal() as stop:
        stop.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("step")
        stop.release()
        done.append("never")
    assert done == ["step"]


def test_a_second_signal_does_not_cut_off_the_saving():
    done = []
    with StopOnSignal() as stop:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("saved")
    assert done == ["saved"] and stop.number == signal.SIGINT


def test_other_threads_are_left_alone():
    failed = []

    def run():
        try:
            with StopOnSignal():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed


def test_statistics_come_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval())
    restore = remember_statistics(model)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(2, 3, 8, 8))
    assert not torch.equal(model[1].running_mean, kept["1.running_mean"])
    restore()
    assert all(torch.equal(buffer, kept[name]) for name, buffer in model.named_buffers())


def test_a_folder_is_held_by_one(tmp_path):
    told = "out: expected a folder for this training alone, another one writes here"
    with hold_folder(tmp_path / "out", "this training"):
        assert (tmp_path / "out" / ".lock").exists()
        with pytest.raises(InputError, match=told), hold_folder(tmp_path / "out", "this training"):
            pass
    with hold_folder(tmp_path / "out", "this training"):
        pass
    assert not list((tmp_path / "out").iterdir())


def test_a_killed_holder_gives_a_folder_up(tmp_path):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with hold_folder(tmp_path, "this training"):
            os.write(writing, b"x")
            signal.pause()
    os.read(reading, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / ".lock").exists()
    with hold_folder(tmp_path, "this training"):
        pass
    assert not (tmp_path / ".lock").exists()


def test_what_a_killed_writer_leaves_is_removed(tmp_path):
    """But not what another one is writing at that time."""
    left = tmp_path / ".file.txt.abcdefgh.part"
    left.write_text("half")
    other = tmp_path / ".other.txt.abcdefgh.part"
    other.write_text("half")
    with atomic_path(tmp_path / "file.txt") as first:
        assert not left.exists() and other.exists()
        with atomic_path(tmp_path / "file.txt") as second:
            assert first.exists()
            second.write_text("second")
        first.write_text("first")
    assert (tmp_path / "file.txt").read_text() == "first"

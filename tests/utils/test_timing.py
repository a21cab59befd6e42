"""Timing: candidates take turns, warm-up is not counted, medians and deciles are what they say."""

import time

import pytest
import torch

from norton_det.utils.errors import InputError
from norton_det.utils.timing import Timing, environment, measure


def test_candidates_take_turns_and_warm_up_is_not_counted():
    order: list[str] = []
    timings = measure(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=4, warmup=2
    )  # fmt: skip
    assert order == ["a", "b"] * 6  # interleaved, never one after all of the other
    assert list(timings) == ["a", "b"]
    assert [len(timing.seconds) for timing in timings.values()] == [4, 4]
    assert all(seconds >= 0 for timing in timings.values() for seconds in timing.seconds)


def test_a_slow_first_call_does_not_count():
    calls = []

    def call():
        calls.append(None)
        time.sleep(1.0 if len(calls) == 1 else 0.01)

    timing = measure({"only": call}, rounds=3, warmup=1)["only"]
    assert 0.01 <= min(timing.seconds) and max(timing.seconds) < 0.9


def test_seconds_are_those_of_the_call():
    timings = measure({"short": lambda: time.sleep(0.01), "long": lambda: time.sleep(0.05)}, rounds=3, warmup=0)
    assert timings["short"].median >= 0.01 and timings["long"].median >= 0.05
    assert timings["short"].median < timings["long"].median
    assert timings["long"].fps == pytest.approx(1 / timings["long"].median)


def test_median_and_deciles():
    timing = Timing(tuple(float(n) for n in (100, 0, 3, 1, 2, 4, 6, 5, 8, 7, 9)))
    assert timing.median == 5 and timing.fps == pytest.approx(0.2)
    assert timing.spread == pytest.approx((1, 9))  # computed by hand: 11 numbers, deciles at each of them
    assert Timing((1.0, 3.0)).median == 2
    assert Timing((2.0,)).spread == (2.0, 2.0)


def test_no_gradients_are_recorded():
    weight, modes = torch.ones(2, requires_grad=True), []
    measure({"model": lambda: modes.append((weight * 2).requires_grad)}, rounds=1, warmup=1)
    assert modes == [False, False] and not torch.is_inference_mode_enabled()


def test_an_error_of_a_candidate_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        measure({"model": lambda: 1 / 0})
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("options", [{"rounds": 0}, {"warmup": -1}, {"candidates": {}}])
def test_what_cannot_be_measured_is_refused(options):
    with pytest.raises(InputError, match="timing: expected candidates, rounds >= 1, warmup >= 0") as caught:
        measure(**{"candidates": {"a": lambda: None}} | options)
    assert "\n" not in str(caught.value)


def test_environment():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    text = environment("cpu", torch.float16)
    torch.set_num_threads(threads)
    assert text == f"cpu, 1 threads, float16, PyTorch {torch.__version__}"
    assert ", float32, " in environment()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_waited_for():
    """A kernel is only queued by its call; what is measured has to include its running."""
    matrix = torch.randn(4096, 4096, device="cuda")
    calls = {"many": lambda: [matrix @ matrix for _ in range(20)], "one": lambda: matrix @ matrix}
    timings = measure(calls, rounds=5, device="cuda")
    assert timings["many"].median > 5 * timings["one"].median
    assert torch.cuda.get_device_name() in environment("cuda")


def test_progress(capsys):
    measure({"a": lambda: None}, rounds=2, warmup=1, progress=True)
    assert "3/3" in capsys.readouterr().err
    measure({"a": lambda: None}, rounds=2, warmup=1)
    assert capsys.readouterr() == ("", "")

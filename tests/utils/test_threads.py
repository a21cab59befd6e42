"""One thread for each operation, several for pieces: the same bits on any number."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from norton_det.decomposition.cp import cp_decompose
from norton_det.decomposition.cp_output import fit_output
from norton_det.decomposition.moments import Moments
from norton_det.models.layers import LowRankLinear
from norton_det.utils.threads import on_threads, one_thread


@pytest.fixture
def on():
    """``on(threads, function)``: what it gives with so many threads of PyTorch, in ``one_thread``."""
    before = torch.get_num_threads()

    def run(threads, function):
        torch.set_num_threads(threads)
        with one_thread():
            return function()

    yield run
    torch.set_num_threads(before)


def test_order_threads_and_settings(on):
    def look(item):
        return item, threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        found = on(3, lambda: list(on_threads(look, range(20))))
    assert [each[0] for each in found] == list(range(20))
    assert threading.get_ident() not in {each[1] for each in found}
    assert {each[2:] for each in found} == {(1, False)}
    assert torch.get_num_threads() == 3
    alone = on(1, lambda: list(on_threads(look, range(3))))
    assert {each[1:] for each in alone} == {(threading.get_ident(), 1, True)}
    assert {each[1] for each in on_threads(look, range(3))} == {threading.get_ident()}  # outside of one_thread


def test_one_thread_within_another_keeps_the_number(on):
    def nested():
        with one_thread():
            return set(on_threads(lambda _: threading.get_ident(), range(8)))

    assert threading.get_ident() not in on(2, nested)
    assert torch.get_num_threads() == 2


def test_items_are_taken_few_ahead_and_errors_come_back(on):
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    def fail(item):
        if item == 5:
            raise ValueError("at 5")
        return item

    with pytest.raises(ValueError, match="at 5"):
        on(2, lambda: list(on_threads(fail, items())))
    assert len(taken) < 10
    assert torch.get_num_threads() == 2


def number_of_a_new_thread():
    """PyTorch's number of threads on a thread that has not used it yet."""
    with ThreadPoolExecutor(1) as new:
        return new.submit(torch.get_num_threads).result()


def test_other_threads_keep_their_number(on):
    """Two threads enter and leave in turns: neither they nor threads that begin meanwhile or later are left at one."""
    torch.set_num_threads(3)
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen = {}

    def first():
        with one_thread():
            first_in.set()
            assert second_in.wait(30)
            seen["first, within"] = torch.get_num_threads()
        seen["first, afterwards"] = torch.get_num_threads()
        first_out.set()

    def second():
        assert first_in.wait(30)
        with one_thread():
            second_in.set()
            assert first_out.wait(30)
            seen["second, within"] = torch.get_num_threads()
            seen["on its pool"] = set(on_threads(lambda _: torch.get_num_threads(), range(9)))
            seen["new, meanwhile"] = number_of_a_new_thread()
        seen["second, afterwards"] = torch.get_num_threads()

    with ThreadPoolExecutor(2) as both:
        for ended in [both.submit(first), both.submit(second)]:
            ended.result()
    assert seen == {
        "first, within": 1,
        "first, afterwards": 3,
        "second, within": 1,
        "on its pool": {1},
        "new, meanwhile": 3,
        "second, afterwards": 3,
    }
    assert torch.get_num_threads() == number_of_a_new_thread() == 3


def test_a_thread_of_its_own_number_gets_that_back(on):
    torch.set_num_threads(3)

    def own():
        torch.set_num_threads(2)
        with one_thread():
            within = torch.get_num_threads()
        return within, torch.get_num_threads()

    with ThreadPoolExecutor(1) as other:
        assert other.submit(own).result() == (1, 2)
    assert torch.get_num_threads() == 3


def test_the_threads_end_with_the_block(on):
    def names():
        list(on_threads(lambda item: item, range(8)))
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("norton_det")}

    assert 1 <= len(on(3, names)) <= 3
    assert not {thread.name for thread in threading.enumerate() if thread.name.startswith("norton_det")}


def test_fits_give_the_same_bits_on_any_number_of_threads(on, generator):
    x, y = torch.randn(9000, 720, generator=generator), torch.randn(9000, 80, generator=generator)
    weight = torch.randn(80, 80, 3, 3, generator=generator)
    linear = torch.nn.Linear(700, 600)

    def fit():
        moments = Moments("layer")
        for part in zip(x.split(1000), y.split(1000), strict=True):
            moments.add(*part)
        moments.finish()
        start = cp_decompose(weight, 2, starts=2)
        prior = torch.zeros(80, 720)
        factors = fit_output(moments, start, prior, 0.01, sweeps=1)
        low = LowRankLinear.from_linear(linear, 100)
        return [moments.least_squares(prior, 0.01), factors.a, factors.b, low.first.weight, moments.xx]

    first, second = on(1, fit), on(3, fit)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))

"""One thread for each operation, several for pieces: the same bits on any number."""

import threading

import pytest
import torch

from norton_det.decomposition.cp import cp_decompose
from norton_det.decomposition.cp_output import fit_output
from norton_det.decomposition.moments import Moments
from norton_det.models.layers import LowRankLinear
from norton_det.utils.hooks import listening
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


def test_layers_are_heard_apart_on_each_thread(on):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    with listening(net, ["0"]) as hear:

        def run(value):
            net(torch.full((1, 2), float(value)))
            return hear()["0"]

        found = on(3, lambda: list(on_threads(run, range(12))))
    assert [[part[0, 0].item() for part in heard] for heard in found] == [[value] for value in range(12)]
    assert hear() == {"0": []} and not net[0]._forward_pre_hooks


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

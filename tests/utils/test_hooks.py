"""Hooks that last as long as a block: what they see and change, and that none is left."""

import pytest
import torch
from torch import nn

from norton_det.utils.hooks import hooked, listening
from norton_det.utils.threads import on_threads, one_thread


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def hooks_of(net):
    return [hook for module in net.modules() for hook in (*module._forward_pre_hooks, *module._forward_hooks)]


def test_inputs_and_outputs_are_seen_and_changed(net):
    doubled = [(net[1], lambda _module, inputs: (2 * inputs[0],))]
    raised = [(net[1], lambda _module, _inputs, output: output + 1)]
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    with hooked(doubled, raised):
        torch.testing.assert_close(net(x), 2 * net[0](x).relu() + 1)
    torch.testing.assert_close(net(x), net[0](x).relu())
    assert not hooks_of(net)


def test_none_is_left_after_an_error(net):
    def fail(_module, _inputs, _output):
        raise ValueError("in a hook")

    with pytest.raises(ValueError, match="in a hook"), hooked(outputs=[(net[0], fail)]):
        net(torch.zeros(1, 2))
    with pytest.raises(AttributeError), hooked(inputs=[(net[0], lambda *_: None), (None, lambda *_: None)]):
        pass
    assert not hooks_of(net)


def test_layers_are_heard_apart_on_each_thread(net):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread(), listening(net, ["0"]) as hear:

            def run(value):
                net(torch.full((1, 2), float(value)))
                return hear()["0"]

            heard = list(on_threads(run, range(12)))
    finally:
        torch.set_num_threads(before)
    assert [[x[0, 0].item() for x in inputs] for inputs in heard] == [[value] for value in range(12)]
    assert hear() == {"0": []} and not hooks_of(net)

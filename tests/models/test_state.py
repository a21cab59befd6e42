"""States of networks: names, shapes and counters of batches, all or nothing; the numbers of a preprocessing."""

import pytest
import torch
from torch import Tensor

from norton_det.models.preprocessing import MSRA, TORCHVISION, Preprocessing
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.models.state import check_state, load_state, match_counters
from norton_det.utils.errors import InputError

SPEC = CompressionSpec.parse(1, "[0.75]+[0.9]*3+[0.85]*16", name="tiny")
ZERO = torch.zeros(2)


def test_load_state_is_all_or_nothing():
    model = NortonResNet(SPEC, 3)
    state = {name: tensor + 1 for name, tensor in NortonResNet(SPEC, 3).state_dict().items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrong: dict[str, Tensor] = state | {"fc.weight": torch.zeros(4, 4)}
    for broken in (
        wrong,
        {name: tensor for name, tensor in state.items() if name != "fc.bias"},
        state | {"x": torch.ones(1)},
    ):
        with pytest.raises(InputError, match=r"weights\.pth: "):
            load_state(model, broken, "weights.pth")
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    without = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    names = list(without)
    load_state(model, without, "weights.pth")
    assert list(without) == names  # the caller's dict is untouched
    assert torch.equal(model.fc.weight, state["fc.weight"])


def test_counters_of_batches_follow_the_network():
    """Zeros where the state lacks them, none where the network's normalisation is frozen, and nothing else changes."""
    expected = {"bn.num_batches_tracked": torch.tensor(7), "bn.weight": torch.ones(2), "frozen.running_mean": ZERO}
    state = {"bn.weight": ZERO, "frozen.running_mean": ZERO, "frozen.num_batches_tracked": torch.tensor(3)}
    before = dict(state)
    matched = match_counters(state, expected)
    assert matched.keys() == expected.keys() and int(matched["bn.num_batches_tracked"]) == 0
    assert match_counters({"bn.num_batches_tracked": torch.tensor(5)}, expected)["bn.num_batches_tracked"] == 5
    assert "other.num_batches_tracked" in match_counters({"other.num_batches_tracked": ZERO}, expected)
    check_state(matched, expected, "x")
    check_state({name: tensor for name, tensor in matched.items() if name != "bn.num_batches_tracked"}, expected, "x")
    with pytest.raises(InputError, match=r"x: tensors: 1 unexpected \(first: frozen.num_batches_tracked\)"):
        check_state(state, expected, "x")
    assert state == before


def test_preprocessing_keeps_its_numbers():
    assert Preprocessing.from_dict(TORCHVISION.to_dict()) == TORCHVISION
    assert Preprocessing("BGR", [1, 2, 3], [1, 1, 1]).mean == (1.0, 2.0, 3.0)
    expected = [255 * mean for mean in (0.406, 0.456, 0.485)]
    assert list(MSRA.mean) == pytest.approx(expected)  # BGR
    assert list(TORCHVISION.mean) == pytest.approx(expected[::-1])
    assert list(TORCHVISION.std) == pytest.approx([255 * std for std in (0.229, 0.224, 0.225)])

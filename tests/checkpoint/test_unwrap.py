"""The network of a file is found below whatever wraps it; which one is taken of several is a rule."""

import pytest
import torch

from norton_det.checkpoint.unwrap import unwrap
from norton_det.models.keys import find_resnet
from norton_det.utils.errors import InputError

TORCHVISION = ("backbone.body.conv1.weight", "backbone.body.layer1.0.conv1.weight", "rpn.head.cls_logits.bias")
DETECTRON2 = ("backbone.bottom_up.stem.conv1.weight", "backbone.bottom_up.res2.0.conv1.weight", "pixel_mean")
CLASSIFIER = ("conv1.weight", "layer1.0.conv1.weight", "fc.bias")
NETWORKS = (TORCHVISION, DETECTRON2, CLASSIFIER)


def tensors(names, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: torch.rand(2) for name in names}


@pytest.mark.parametrize("names", NETWORKS, ids=["torchvision", "detectron2", "classifier"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "net.detector.model."])
@pytest.mark.parametrize("path", [(), ("model",), ("state_dict",), ("checkpoint", "state_dict"), ("a", "b", "net")])
def test_any_wrapper_is_taken_off(names, prefix, path):
    content = tensors(names, prefix)
    inner = dict(content)
    for key in reversed(path):
        content = {key: content, "epoch": 3, "best": torch.tensor(0.5), "optimizer": {"state": {0: torch.ones(2)}}}
    network = unwrap(content)
    assert list(network.state) == list(names) and list(network.state.values()) == list(inner.values())
    assert network.wrapper == "".join(f"{key}." for key in path) + prefix and not network.copies
    assert network.fields == ({"epoch": 3, "optimizer": content.get("optimizer")} if path else {})


def test_what_is_beside_the_network_is_left():
    """Lightning: metrics, a criterion and hyper-parameters; the queue of MoCo."""
    names = {"metric.total": torch.zeros(1), "criterion.weight": torch.ones(3)}
    network = unwrap({"state_dict": names | tensors(TORCHVISION, "model."), "hyper_parameters": {"lr": 1}})
    assert list(network.state) == list(TORCHVISION) and network.fields == {"hyper_parameters": {"lr": 1}}
    assert network.outside == ("state_dict.metric.total", "state_dict.criterion.weight")


def test_a_detector_in_parts():
    parts = {
        "backbone": {"body.layer1.0.conv1.weight": torch.zeros(1), "fpn.x": torch.zeros(1)},
        "rpn": {"y": torch.ones(1)},
    }
    assert list(unwrap(parts).state) == ["backbone.body.layer1.0.conv1.weight", "backbone.fpn.x", "rpn.y"]


@pytest.mark.parametrize("names", NETWORKS, ids=["torchvision", "detectron2", "classifier"])
@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ("model.", "model_ema.module."),
        ("state_dict.", "state_dict_ema."),
        ("net.", "ema."),
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
        ("base_encoder.", "momentum_encoder."),
        ("online_net.0.", "target_net.0."),
        ("model.modelTeacher.", "model.modelStudent."),
        ("teacher.", "student.module."),
    ],
)
def test_which_of_two_is_a_rule(names, taken, left):
    """In either order, as dicts or as prefixes."""
    for first, second in ((taken, left), (left, taken)):
        flat = tensors(names, first) | tensors(names, second)
        nested: dict = {}
        for name, tensor in flat.items():
            key, _, rest = name.partition(".")
            nested.setdefault(key, {})[rest] = tensor
        for content in (flat, nested):
            network = unwrap(content)
            assert network.wrapper == taken and network.copies == (left,)
            assert [flat[taken + name] is network.state[name] for name in names] == [True] * 3
            assert len(network.state) == 3 and not network.outside


def test_a_copy_alone_is_taken():
    assert list(unwrap({"model": None, "ema": tensors(CLASSIFIER, "module.")}).state) == list(CLASSIFIER)


def test_networks_that_share_their_tensors_are_one():
    state = tensors(CLASSIFIER)
    content = {f"encoder.net.{name}": tensor for name, tensor in state.items()} | {
        f"net.{name}": tensor for name, tensor in state.items()
    }
    assert unwrap(content).wrapper == "net."
    assert list(unwrap({"model": state, "again": state}).state) == list(CLASSIFIER)


@pytest.mark.parametrize(
    ("one", "two"),
    [("generator.", "critic."), ("model.student.", "model.teacher."), ("ema.student.", "ema.critic.")],
)
def test_two_networks_of_equal_rank_are_not_chosen_from(one, two):
    """A teacher of other shapes is another network, as in distillation."""
    other = {name: torch.rand(5) for name in tensors(TORCHVISION, two)}
    network = unwrap(tensors(TORCHVISION, one) | other)
    with pytest.raises(InputError, match=r"^expected one network, got 2, below \w+\.backbone\.body, \w+\.backbone"):
        find_resnet(network.state)


def test_files_without_a_resnet_keep_their_names():
    state = {"features.0.weight": torch.zeros(1)}
    for content in (state, {"model": state}, {"state_dict": state}, {"whatever": {"net": state}}):
        assert [name.rpartition("net.")[2] for name in unwrap(content).state] == ["features.0.weight"]
    assert unwrap({"a": 1}).state == {} and unwrap({"model": {"a": 1}}).fields == {"model": {"a": 1}}


def test_dicts_that_hold_each_other_end():
    content: dict = {"model": tensors(CLASSIFIER), 3: {}, "other": {1: torch.zeros(1)}}
    content["model"]["self"] = content["other"]["all"] = content
    wide: dict = {"x": torch.zeros(1)}
    for _ in range(50):
        wide = {str(index): wide for index in range(50)}
    assert list(unwrap(content | {"wide": wide}).state) == list(CLASSIFIER)

"""Detectors as other programs save them are loaded to what these programs compute; nothing is compared by eye."""

import argparse
import re

import pytest
import torch
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.save import save_checkpoint, save_tensors
from norton_det.compression.resnet import compress_detector_state
from norton_det.deploy.loading import load_detector
from norton_det.models.description import NetworkInfo
from norton_det.models.spec import CompressionSpec
from norton_det.tv.backbone import resnet_fpn
from norton_det.tv.detectors import DETECTORS, load_torchvision_detector
from norton_det.utils.errors import InputError
from tests.models.test_detector_keys import old_name
from tests.release import randomise, release_network

RATIOS = "[0.]+[0.9]*2+[0.85]*17"
SMALL = {"min_size": 64, "max_size": 80, "rpn_post_nms_top_n_test": 8, "box_score_thresh": 0.0}
CLASSES = 3


def thin_detector(kind: str, body: nn.Module | None = None) -> nn.Module:
    """A detector on a thin ResNet, with torchvision's neck and heads."""
    torch.manual_seed(0)
    backbone = resnet_fpn(NetworkInfo(CompressionSpec.parse(2 if body else None, RATIOS)), True, 0)
    if body is not None:
        backbone.body = IntermediateLayerGetter(body, dict(backbone.body.return_layers))
    return randomise(DETECTORS[kind](backbone, CLASSES, **SMALL))


def outputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """Detections of one small picture."""
    model.transform.min_size, model.transform.max_size = (64,), 80
    model.rpn._post_nms_top_n["testing"], model.roi_heads.score_thresh = 8, 0.0
    with torch.no_grad():
        return model.eval()([torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(3))])[0]


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("rename", [str, old_name], ids=["names of today", "old names"])
def test_detectors_of_the_release(kind, rename, tmp_path):
    """Components rank-major, rank and widths not in the file; as its training script saves them."""
    body = release_network(2, CompressionSpec.parse(2, RATIOS))
    del body.fc
    model = thin_detector(kind, body)
    state = {rename(name): tensor for name, tensor in model.state_dict().items()}
    assert "backbone.body.layer1.0.conv2.feature.pointwise.weight" in state
    training = {"optimizer": {"state": {}, "param_groups": []}, "lr_scheduler": {"last_epoch": 26}, "epoch": 25}
    torch.save({"model": state, "args": argparse.Namespace(decompose_rank=2), **training}, tmp_path / "model_25.pth")
    opened = open_weights(tmp_path / "model_25.pth")
    assert opened.info.spec.same_network(CompressionSpec.parse(2, RATIOS)) and opened.stack == "torchvision"
    assert opened.kind == "backbone of a NORTON release detector"
    loaded = load_torchvision_detector(opened)
    expected, found = outputs(model), outputs(loaded)
    assert len(expected["boxes"]) > 0 and found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def mask_detector():
    return thin_detector("mask").bfloat16().float()


def wrapped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


LIGHTNING = {
    "pytorch-lightning_version": "2.2.0",
    "callbacks": {},
    "optimizer_states": [],
    "hyper_parameters": {"lr": 1},
}
FORMS = {
    "old names": lambda state: {old_name(name): tensor for name, tensor in state.items()},
    "DDP": lambda state: {"model": wrapped(state, "module."), "epoch": 1},
    "DDP and compile, old names": lambda state: wrapped(
        {old_name(name): tensor for name, tensor in state.items()}, "module._orig_mod."
    ),
    "Lightning": lambda state: {
        "state_dict": wrapped(state, "model.") | {"val_map.total": torch.zeros(1)},
        **LIGHTNING,
    },
    "nested": lambda state: {"checkpoint": {"net": wrapped(state, "detector."), "epoch": 2}, "meta": {"x": 1}},
    "average beside": lambda state: {
        "model_ema": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        "model": state,
    },
    "float64": lambda state: {name: tensor.double() for name, tensor in state.items() if "batches" not in name},
    "float16": lambda state: {name: tensor.half() for name, tensor in state.items() if "batches" not in name},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_form_of_a_file_gives_the_same_detector(form, zipped, mask_detector, tmp_path):
    state = mask_detector.state_dict()
    small = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save(FORMS[form](small), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    opened = open_weights(tmp_path / "w.pth")
    assert sorted(opened.detector) == sorted(name for name in state if name in opened.detector)
    assert len(opened.detector) >= sum("num_batches" not in name for name in state)
    if zipped:
        loaded = load_torchvision_detector(opened)
        if form == "float16":  # has fewer exponents
            assert list(loaded.state_dict()) == list(state)
        else:
            assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_torchvisions_second_version(tmp_path):
    """Normalisation in neck and heads, an RPN of two convolutions, a box head of four: all by the tensors' names."""
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=CLASSES)
    torch.save({"model": theirs.state_dict()}, tmp_path / "model.pth")
    loaded = load_torchvision_detector(tmp_path / "model.pth")
    expected, found = outputs(theirs), outputs(loaded)
    assert len(expected["boxes"]) > 0 and all(torch.equal(found[name], value) for name, value in expected.items())
    again = outputs(load_torchvision_detector(save_checkpoint(tmp_path / "model.safetensors", loaded)))
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_what_compress_writes_of_a_wrapped_detector_is_loaded(tmp_path):
    """Old names below a wrapper, compressed: the file has the names of its stack."""
    info = NetworkInfo(CompressionSpec.dense("resnet18"), num_classes=0)
    torch.manual_seed(0)
    model = DETECTORS["faster"](resnet_fpn(info, True, 0), CLASSES)
    state = {f"module.{old_name(name)}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    opened = open_weights(tmp_path / "w.pth")
    spec = CompressionSpec.parse(None, "[0.]+[0.3]*10", "resnet18")
    small, _ = compress_detector_state(opened.detector, spec)
    file = save_tensors(tmp_path / "small.safetensors", small, NetworkInfo(spec, num_classes=0))
    loaded = load_torchvision_detector(file)
    assert {name: t.shape for name, t in loaded.state_dict().items()} == {
        name: tensor.shape for name, tensor in small.items() if "num_batches" not in name
    }
    # as an earlier norton_det wrote it, with the old names
    old = save_tensors(
        tmp_path / "old.safetensors", {old_name(n): t for n, t in small.items()}, NetworkInfo(spec, num_classes=0)
    )
    again = load_torchvision_detector(old).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("strange", "told"),
    [
        ("neck.lateral_convs.0.conv.weight", "got an MMDetection detector; norton-det compress without --config takes"),
        ("head.classification_head.conv.0.0.weight", "got torchvision's RetinaNet or FCOS"),
    ],
)
def test_other_detectors_are_named(strange, told, tmp_path):
    state = {"backbone.body.layer1.0.conv1.weight": torch.zeros(1), strange: torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=f"^{re.escape(str(tmp_path))}/w.pth: expected a detector of torchvision, {told}"
    ):
        load_torchvision_detector(tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=rf"w\.pth: expected a detector of torchvision or Detectron2, {re.escape(told)}"
    ):
        load_detector(str(tmp_path / "w.pth"))  # as commands do

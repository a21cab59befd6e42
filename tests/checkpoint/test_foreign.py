"""Files of other projects' trainings: their ResNet with the input that the file says, or a line that names them."""

import re

import pytest
import torch

from norton_det.checkpoint.conventions import conventions
from norton_det.checkpoint.load import load_weights
from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.tensor_file import METADATA_KEY
from norton_det.models.description import NetworkInfo
from norton_det.models.keys import ResNetPart
from norton_det.models.preprocessing import MSRA, TORCHVISION, Preprocessing
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError
from tests.release import randomise

TINY = CompressionSpec.parse(None, "[0.5]+[0.9]*19")
CAFFE = "mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False"
PYTORCH = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True"


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Tensor]:
    """State of a thin ResNet-50 of 7 classes."""
    return randomise(NortonResNet(TINY, 7)).state_dict()


@pytest.fixture(scope="module")
def body(tiny):
    return {name: tensor for name, tensor in tiny.items() if not name.startswith("fc.")}


def below(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def changed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same shapes with other values."""
    return {name: tensor + 1 if tensor.is_floating_point() else tensor.clone() for name, tensor in state.items()}


ONE = torch.zeros(1)
FAMILIES = {  # what stands in a file of it, beside its ResNet
    "backbone of DINO": lambda body: {
        "student": below("module.backbone.", changed(body)) | {"module.head.mlp.0.weight": ONE},
        "teacher": below("backbone.", body) | {"head.mlp.0.weight": ONE},
        "epoch": 1,
    },
    "backbone of MoCo": lambda body: {
        "state_dict": below("module.encoder_q.", body)
        | {"module.encoder_q.fc.0.weight": ONE, "module.encoder_q.fc.2.bias": ONE, "module.queue": ONE}
        | below("module.encoder_k.", changed(body)),
        "arch": "resnet50",
    },
    "backbone of SwAV": lambda body: below("module.", body | {"prototypes.weight": ONE, "projection_head.0.bias": ONE}),
    "backbone of BYOL": lambda body: (
        below("online_net.0.", body) | below("target_net.0.", changed(body)) | {"online_net.1.x": ONE}
    ),
    "backbone of self-supervised training": lambda body: {
        "model": below("module.backbone.", body),
        "projector.0.x": ONE,
    },
    "backbone of a DETR detector": lambda body: {
        "model": below("backbone.0.body.", body) | {"transformer.encoder.layers.0.x": ONE}
    },
    "torchvision state dict": lambda body: {"state_dict": body, "state_dict_ema": changed(body), "version": 2},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_resnet_of_a_training_is_read(kind, body, tmp_path):
    torch.save(FAMILIES[kind](body), tmp_path / "w.pth.tar")
    loaded = load_weights(tmp_path / "w.pth.tar")
    assert loaded.source == f"{kind} (fp32)"
    assert (loaded.preprocessing, loaded.stride_in_1x1, loaded.num_classes) == (TORCHVISION, False, 0)
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in body.items())
    assert loaded.spec.same_network(TINY)


def test_the_classifier_of_openmmlab_is_read_whole(tiny, body, tmp_path):
    head = {f"head.{name}": tensor for name, tensor in tiny.items() if name.startswith("fc.")}
    meta = {"mmcls_version": "0.23", "config": f"img_norm_cfg = dict(\n    {PYTORCH})\n"}
    torch.save({"meta": meta, "state_dict": below("backbone.", body) | head}, tmp_path / "w.pth")
    loaded = load_weights(tmp_path / "w.pth")
    assert loaded.num_classes == 7 and torch.equal(loaded.state["fc.weight"], tiny["fc.weight"])


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"config": f"backbone=dict(depth=50, style='caffe')\nimg_norm_cfg = dict({CAFFE})"}, (MSRA, True)),
        ({"config": f"backbone=dict(style='pytorch')\ndict(type='Normalize', {PYTORCH})\n" * 3}, (TORCHVISION, False)),
        ({"cfg": f"data_preprocessor=dict({CAFFE.replace('to_rgb', 'bgr_to_rgb')}), style='caffe'"}, (MSRA, True)),
        (
            {"config": f"dict({CAFFE.replace('[1.0, 1.0, 1.0]', '[57.375, 57.12, 58.395]')}, style='pytorch')"},
            (Preprocessing("BGR", MSRA.mean, (57.375, 57.12, 58.395)), False),
        ),
        ({"config": '{"style": "caffe", "mean": [1, 2, 3], "std": [4, 5, 6], "to_rgb": true}'}, None),
        (
            {"config": {"backbone": {"style": "caffe"}, "n": [{"mean": [1, 2, 3], "std": (4, 5, 6), "to_rgb": True}]}},
            None,
        ),
        (
            {"config": "model = dict(bbox_coder=dict(target_means=[0., 0., 0., 0.], target_stds=[1., 1., 1., 1.]))"},
            "as",
        ),
        ({"epoch": 3}, "as"),
        (None, "as"),
    ],
)
def test_input_is_that_of_the_config_in_the_file(meta, expected):
    if expected is None:
        expected = (Preprocessing("RGB", (1, 2, 3), (4, 5, 6)), True)
    if expected == "as":  # the file does not say: as for all ResNets of these names
        expected = (TORCHVISION, False)
    part = ResNetPart("backbone.", "torchvision", False, {}, {})
    assert conventions(part, {}, {"meta": meta})[:2] == expected


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (f"a=dict({CAFFE}), b=dict({PYTORCH})", r"expected one mean, got \(103\.53, .*\) and \(123"),
        ("a=dict(mean=[1, 2, 3], std=[1, 1, 1])", "expected mean, std and to_rgb, got not all of them"),
        ("mean=[1, 2, 3], std=[1, 1, 0], to_rgb=True", "std: expected positive numbers"),
        (f"{PYTORCH}, a=dict(style='caffe'), b=dict(style='pytorch')", "expected one style, got caffe and pytorch"),
    ],
)
def test_a_config_that_does_not_say_it_is_refused(config, told, body, tmp_path):
    torch.save({"meta": {"config": config}, "state_dict": below("backbone.", body)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))}/w\.pth: [^\n]*{told}"):
        load_weights(tmp_path / "w.pth")


def test_a_config_is_text_that_is_not_run(tmp_path):
    """Nor does it keep the reader busy."""
    mark = tmp_path / "ran"
    for config in (f"__import__('os').system('touch {mark}')\n{CAFFE}", "mean=[" * 200_000, "style=" + "(" * 10**6):
        part = ResNetPart("backbone.", "torchvision", False, {}, {})
        assert conventions(part, {}, {"meta": {"config": config}})[0] in (MSRA, TORCHVISION)
    assert not mark.exists()


def test_an_mmdetection_detector_gives_its_backbone(body, tmp_path):
    neck = {
        "neck.lateral_convs.0.conv.weight": ONE,
        "rpn_head.rpn_conv.weight": ONE,
        "roi_head.bbox_head.fc_cls.bias": ONE,
    }
    meta = {"mmdet_version": "2.25", "config": f"backbone=dict(type='ResNet', style='caffe')\nx = dict({CAFFE})"}
    torch.save({"meta": meta, "state_dict": below("backbone.", body) | neck}, tmp_path / "w.pth")
    loaded = load_weights(tmp_path / "w.pth")
    assert loaded.source == "backbone of an MMDetection detector (fp32)"
    assert (loaded.preprocessing, loaded.stride_in_1x1) == (MSRA, True)


def test_what_is_assumed_is_said(body, tmp_path, caplog):
    state = below("backbone.", body) | {"neck.lateral_convs.0.conv.weight": ONE}
    torch.save({"state_dict": state, "meta": {"epoch": 12}}, tmp_path / "w.pth")
    assert load_weights(tmp_path / "w.pth").preprocessing == TORCHVISION
    assert "w.pth: does not say what input it wants; assumed: RGB mean [123.675" in caplog.text


def test_which_network_was_taken_is_said_but_of_our_own_files(body, tmp_path, caplog):
    content = {"model": body, "trainer": {"average": below("module.", changed(body))}}
    torch.save(content, tmp_path / "w.pth")
    assert torch.equal(load_weights(tmp_path / "w.pth").state["conv1.weight"], body["conv1.weight"])
    told = "holds several networks; taken: that below model, left: that below trainer.average.module"
    assert caplog.text.count(told) == 1
    info = NetworkInfo(TINY, num_classes=0)
    torch.save(content | {METADATA_KEY: info.to_json()}, tmp_path / "w.pth")
    assert open_weights(tmp_path / "w.pth").described == info and caplog.text.count("several") == 1


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["backbone.body.stem.conv1.weight", "backbone.body.layer1.0.conv1.weight"], "a maskrcnn-benchmark detector"),
        (["student.layer1.0.conv1.weight", "critic.layer1.0.conv1.weight"], "got 2, below student, critic"),
        (["encoder.weight"], r"got unknown names \(first: encoder\.weight\)"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_file(names, told, tmp_path):
    torch.save({"state_dict": {name: torch.rand(2) for name in names}}, tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))}/w\.ckpt: [^\n]*{told}"):
        load_weights(tmp_path / "w.ckpt")

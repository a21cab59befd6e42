"""Detectors' files: what goes where, what is refused in one line, nothing half-written, nothing run."""

import os
import pickle
import re

import pytest
import torch
import torchvision
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model

from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.save import save_checkpoint, save_tensors
from norton_det.checkpoint.tensor_file import METADATA_KEY
from norton_det.compression.resnet import compress_detector_state
from norton_det.d2 import NortonCheckpointer, load_detector
from norton_det.d2.files import open_file
from norton_det.models.description import NetworkInfo
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from tests.messages import refused

from .conftest import classifier


def detector(config, **keys):
    return build_model(config(**keys))


def equal(model, state) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("fpn", [True, False])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_classifier_goes_to_the_backbone(config, norton_64, fpn, norm):
    name = f"build_norton_resnet{'_fpn' if fpn else ''}_backbone"
    keys = {"MODEL.BACKBONE.NAME": name, "MODEL.WEIGHTS": norton_64, "MODEL.RESNETS.NORM": norm}
    cfg = config(**keys)
    if fpn:
        model = build_model(cfg)
    else:
        model = torch.nn.Module()
        model.backbone = build_model(config(**keys | {"MODEL.BACKBONE.NAME": name.replace("resnet", "resnet_fpn")}))
        model.backbone = model.backbone.backbone.bottom_up
    prefix = "backbone.bottom_up." if fpn else "backbone."
    others = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith(prefix)}
    NortonCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    source = classifier("norton-64").state_dict()
    expected = {
        prefix + n: t
        for n, t in source.items()
        if not n.startswith("fc.") and not n.endswith("num_batches_tracked")
    }  # fmt: skip
    assert len(expected) == 297 and equal(model, expected) and equal(model, others)


def test_dense_weights_of_other_origins(config, dense_file, tmp_path):
    """A classifier's .pth of half precision, the same in torch's old format, a torchvision detector: their ResNet."""
    state = torch.load(dense_file, weights_only=True)
    old = tmp_path / "old.pth"
    torch.save(state, old, _use_new_zipfile_serialization=False)
    body = {f"backbone.body.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")}
    other = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    torch.save({"model": other | body}, tmp_path / "torchvision.pth")
    for file in (dense_file, old, tmp_path / "torchvision.pth"):
        assert open_weights(file).described is None
        model = detector(config, **{"MODEL.NORTON.PRESET": "dense", "MODEL.WEIGHTS": file})
        NortonCheckpointer(model).load(str(file))
        found = model.backbone.bottom_up.state_dict()
        for name in ("conv1.weight", "layer2.1.bn3.running_var", "layer4.2.conv2.weight"):
            assert torch.equal(found[name], state[name].float()), (file, name)


def test_round_trip_of_a_trainers_file(config, tmp_path):
    keys = {"MODEL.NORTON.PRESET": "norton-77", "MODEL.ROI_HEADS.NUM_CLASSES": 3}
    cfg = config(**keys)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.backbone.fpn_output2.weight.grad = torch.ones_like(model.backbone.fpn_output2.weight)
    optimizer.step()
    trainer = SimpleTrainer(model, [], optimizer)
    trainer.iter = 6
    checkpointer = NortonCheckpointer(model, str(tmp_path), trainer=trainer)
    checkpointer.save("model_0000006", iteration=6)
    file = tmp_path / "model_0000006.pth"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000006.pth"]

    info = open_weights(file).described
    assert info == NetworkInfo(CompressionSpec.preset("norton-77"), model.backbone.bottom_up.preprocessing, 0, False)
    content = torch.load(file, weights_only=True)
    assert NetworkInfo.from_json(content[METADATA_KEY]) == info and content["iteration"] == 6
    # any preset in the config: the file's own spec counts
    again = load_detector(config(**keys | {"MODEL.WEIGHTS": file, "MODEL.NORTON.PRESET": "norton-64"}))
    assert not again.training and equal(again, model.state_dict())

    other = build_model(cfg)
    resumed = SimpleTrainer(other, [], torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9))
    extra = NortonCheckpointer(other, str(tmp_path), trainer=resumed).resume_or_load("", resume=True)
    assert equal(other, model.state_dict()) and resumed.iter == 6 and extra["iteration"] == 6
    momentum = resumed.optimizer.state[other.backbone.fpn_output2.weight]["momentum_buffer"]
    assert torch.equal(momentum, torch.ones_like(momentum))


def test_whole_detector_as_safetensors(config, tmp_path):
    """The road of tools/compress.py: a trained dense detector, compressed whole, evaluated as it is."""
    dense = detector(config, **{"MODEL.NORTON.PRESET": "dense"})
    spec = CompressionSpec.parse(None, "[0.]+[0.4]*19")
    state, report = compress_detector_state(dense.state_dict(), spec)
    file = save_tensors(tmp_path / "detector.safetensors", state, NetworkInfo(spec, num_classes=0))
    model = load_detector(config(**{"MODEL.WEIGHTS": file}))
    names = model.state_dict().keys()
    assert equal(model, {name: tensor for name, tensor in state.items() if name in names})
    assert model.backbone.fpn_lateral3.in_channels == len(report.kept["layer2"]) == 307


def test_another_network_is_an_error(config, norton_64, tmp_path):
    model = detector(config)
    refused(
        lambda: NortonCheckpointer(model).load(str(norton_64)),
        r"backbone\.bottom_up\.layer\S+: expected shape \(.*\), got \(.*\); the rank or ratios of MODEL.NORTON are of",
    )
    rank_2 = NortonResNet(CompressionSpec.parse(2, CompressionSpec.preset("norton-78").ratios), 0)
    file = save_checkpoint(tmp_path / "rank2.safetensors", rank_2)
    refused(lambda: NortonCheckpointer(detector(config)).load(str(file)), "expected shape .*, got .*; the rank or")
    dense = save_checkpoint(tmp_path / "dense.safetensors", classifier("dense", 0))
    keys = {"MODEL.NORTON.PRESET": "dense", "MODEL.NORTON.RANK": 1}
    refused(
        lambda: NortonCheckpointer(detector(config, **keys)).load(str(dense)),
        r"dense\.safetensors: 48 tensors of the backbone are missing \(first: \S+conv2\.\w+\.weight\); use weights of",
    )


def test_without_heads_there_is_nothing_to_evaluate(config, norton_64, dense_file):
    refused(
        lambda: load_detector(config(**{"MODEL.WEIGHTS": norton_64})),
        r"\.safetensors: \d+ tensors of the detector are missing \(first: \S*(fpn|rpn|roi)\S*\); train a detector with",
    )
    keys = {"MODEL.WEIGHTS": dense_file, "MODEL.NORTON.PRESET": "dense"}
    refused(lambda: load_detector(config(**keys)), r"tensors of the detector are missing")
    refused(lambda: load_detector(config()), "MODEL.WEIGHTS: expected a trained detector, got none; add MODEL.WEIGHTS")
    refused(
        lambda: load_detector(config(**{"MODEL.WEIGHTS": "nowhere.pth"})),
        "nowhere.pth: expected the weights of MODEL.WEIGHTS, found no such file; check the path",
    )


def test_another_number_of_classes(config, tmp_path, caplog):
    model = detector(config, **{"MODEL.ROI_HEADS.NUM_CLASSES": 3})
    NortonCheckpointer(model, str(tmp_path)).save("three")
    file = str(tmp_path / "three.pth")
    keys = {"MODEL.ROI_HEADS.NUM_CLASSES": 5, "MODEL.WEIGHTS": file}
    other = detector(config, **keys)
    before = other.roi_heads.box_predictor.cls_score.weight.clone()
    NortonCheckpointer(other).load(file)  # for training: the last layers start anew, all else comes from the file
    assert torch.equal(other.roi_heads.box_predictor.cls_score.weight, before)
    assert equal(other.roi_heads.box_head, model.roi_heads.box_head.state_dict())
    assert equal(other.backbone, model.backbone.state_dict())
    assert "cls_score.weight" in caplog.text
    refused(
        lambda: load_detector(config(**keys)), r"box_predictor\.\w+\.\w+: expected shape \(\d+.*\), got \(\d+"
    )  # for evaluation


def test_interrupted_save_leaves_the_old_file(config, tmp_path, monkeypatch):
    model = torch.nn.Module()
    model.backbone = classifier("norton-78", 0)
    checkpointer = NortonCheckpointer(model, str(tmp_path))
    checkpointer.save("model")
    old = (tmp_path / "model.pth").read_bytes()

    def full_disk(data, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    refused(lambda: checkpointer.save("model"), r"model\.pth: could not be written \(No space left on device\); free")
    assert (tmp_path / "model.pth").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "pkl"])
def test_code_in_a_file_is_not_run(config, tmp_path, how):
    ran = tmp_path / "RAN"
    content = {"model": {"backbone.bottom_up.layer1.0.conv1.weight": Malicious(f"touch {ran}")}}
    file = tmp_path / ("model.pkl" if how == "pkl" else "model.pth")
    if how.endswith("torch"):
        torch.save(content, file, _use_new_zipfile_serialization=how == "torch")
    else:
        file.write_bytes(pickle.dumps(content))
    model = torch.nn.Module()
    model.backbone = classifier("norton-78", 0)
    refused(lambda: NortonCheckpointer(model).load(str(file)), r"model\.(pth|pkl): expected .*system")
    if how != "pkl":
        refused(lambda: open_weights(file).described, r"model\.pth: expected .*system")
    assert not ran.exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "a list", "metadata"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_files(tmp_path, damage, suffix):
    model = torch.nn.Module()
    model.backbone = classifier("norton-78", 0)
    file = tmp_path / f"model.{suffix}"
    if suffix == "pth":
        NortonCheckpointer(model, str(tmp_path)).save("model")
    else:
        save_checkpoint(file, model.backbone)
    whole = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("<html>404 not found</html>" * 20)
    elif damage == "a list":
        torch.save([torch.zeros(2)], file)
    else:
        file.write_bytes(whole.replace(b"resnet50", b"resnet5x"))
    refused(lambda: open_weights(file).described, rf"model\.{suffix}: ")


def test_what_says_nothing_of_itself(dense_file, norton_64, tmp_path):
    assert open_weights(dense_file).described is None
    assert open_weights(norton_64).described == NetworkInfo(CompressionSpec.preset("norton-64"), num_classes=10)
    for address in ("", "torchvision://resnet50", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"):
        assert open_file(address) is None  # nothing is downloaded to know that
    refused(lambda: open_weights(tmp_path / "none.pth").described, "none.pth: expected .*, found no such file")


def test_wrapped_detectors_are_read_whole(config, tmp_path):
    """What distributed, compiled and Lightning trainings save, and a teacher with its student: nothing is left anew."""
    cfg = config(**{"MODEL.NORTON.PRESET": "norton-78"})
    model, other = build_model(cfg), build_model(cfg)
    state = {name: t.half().float() if t.is_floating_point() else t for name, t in model.state_dict().items()}

    def below(prefix: str, tensors=state) -> dict[str, torch.Tensor]:
        return {prefix + name: tensor for name, tensor in tensors.items()}

    hollow = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}
    contents = {
        "compiled.pth": {"model": below("module._orig_mod.")},
        "light.ckpt": {"state_dict": below("model.") | {"map.total": torch.zeros(1)}, "hyper_parameters": {"lr": 1}},
        "msd.pth": {"model_state_dict": {name: tensor.half() for name, tensor in state.items()}},
        "ut.pth": {"model": below("modelStudent.", hollow) | below("modelTeacher."), "iteration": 9},
        "ema.pth": {"ema_state": hollow, "model": state},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
        torch.nn.init.zeros_(other.proposal_generator.rpn_head.conv.weight)
        fields = NortonCheckpointer(other, whole=True).load(str(tmp_path / name))
        assert equal(other, state), name
        assert fields.get("iteration") == content.get("iteration")


@pytest.mark.parametrize("name", ["faster_rcnn_R_50_C4_1x.yaml", "mask_rcnn_R_50_FPN_1x.yaml"])
def test_detectron2s_own_detectors_get_all_of_their_own_file(name, tmp_path):
    """The names of a detector with Detectron2's ResNet stay as they are, with and without FPN."""
    from detectron2 import model_zoo

    cfg = model_zoo.get_config(f"{'COCO-Detection' if 'faster' in name else 'COCO-InstanceSegmentation'}/{name}")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    model, other = build_model(cfg), build_model(cfg)
    content = {"model": {key: tensor.numpy() for key, tensor in model.state_dict().items()}, "__author__": "Zoo"}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content))
    NortonCheckpointer(other, whole=True).load(str(tmp_path / "model.pkl"))
    assert equal(other, model.state_dict())


def test_detectors_of_others_are_named(config, tmp_path):
    model = detector(config)
    first = {"layer1.0.conv1.weight": torch.zeros(1)}
    for name, content, told in (
        ("tv.pth", {f"backbone.body.{key}": tensor for key, tensor in first.items()}, "one of torchvision; leave out"),
        (
            "mm.pth",
            {f"backbone.{key}": t for key, t in first.items()} | {"rpn_head.rpn_conv.bias": torch.zeros(1)},
            "an MMDetection detector; norton-det compress without --config takes its backbone",
        ),
    ):
        torch.save({"state_dict": content}, tmp_path / name)
        refused(
            lambda file=tmp_path / name: NortonCheckpointer(model, whole=True).load(str(file)),
            rf"^{re.escape(str(tmp_path / name))}: expected a detector of Detectron2, got {told}",
        )

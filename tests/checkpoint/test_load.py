"""Every kind of starting weights is read to the network that its own library would build from it."""

import argparse
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from norton_det.checkpoint.load import load_weights
from norton_det.checkpoint.save import save_checkpoint
from norton_det.models.keys import torchvision_to_d2
from norton_det.models.preprocessing import MSRA, TORCHVISION
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError
from tests.release import randomise, release_network

TINY = CompressionSpec.parse(None, "[0.5]+[0.9]*19")  # 2 MB instead of 100
ONE_LINE = re.compile(r"[^\n]+")


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def numpy(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def outputs_equal(a, b, tolerance=1e-5) -> bool:
    """Within the tolerance of the largest value."""
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max())


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """torchvision's ResNet-50 of 7 classes, values as float16 keeps them."""
    model = randomise(models.resnet50(num_classes=7))
    model.load_state_dict({name: tensor.to(tensor.dtype) for name, tensor in half(model.state_dict()).items()})
    return model


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Tensor]:
    """State of a thin ResNet-50 of 7 classes."""
    return randomise(NortonResNet(TINY, 7)).state_dict()


@pytest.fixture
def big_file(tmp_path):
    """A folder for files too large to keep."""
    folder = tmp_path / "big"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


# --- torchvision ------------------------------------------------------------------------------------------------------


def test_torchvision_state_dict(dense, image, big_file):
    torch.save(half(dense.state_dict()), big_file / "r50.pth")
    loaded = load_weights(big_file / "r50.pth")
    assert loaded.source == "torchvision state dict (fp16)"
    assert loaded.spec == CompressionSpec.dense() and loaded.num_classes == 7
    assert loaded.preprocessing == TORCHVISION and not loaded.stride_in_1x1
    assert list(loaded.state) == list(dense.state_dict())
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in loaded.state.values())
    model = loaded.build()
    assert not model.training and model.preprocessing == TORCHVISION
    with torch.no_grad():
        assert outputs_equal(dense(image), model(image))


def test_real_weights(real_weights_path, real_weights, image):
    loaded = load_weights(str(real_weights_path))
    assert (loaded.source, loaded.num_classes) == ("torchvision state dict (fp16)", 10)
    reference = models.resnet50(num_classes=10).eval()
    reference.load_state_dict(real_weights)
    with torch.no_grad():
        assert outputs_equal(reference(image), loaded.build()(image))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [("model", ""), ("state_dict", "module."), ("model_state_dict", ""), ("model_ema", "module.")],
)
def test_wrapped_states(tiny, tmp_path, wrapper, prefix, zipped):
    inner = {f"{prefix}{name}": tensor for name, tensor in tiny.items()}
    # beside it what training scripts leave: options, numpy scores, the optimiser
    content = {
        wrapper: inner | ({"n_averaged": torch.tensor(1)} if wrapper == "model_ema" else {}),
        "args": argparse.Namespace(lr=0.1, data_path="x"),
        "best": np.float64(0.5),
        "epoch": 3,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
    }
    torch.save(content, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=zipped)
    loaded = load_weights(tmp_path / "checkpoint.pth")
    assert loaded.spec.same_network(TINY) and loaded.num_classes == 7
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in tiny.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_safetensors_of_every_float_type(tiny, tmp_path, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny.items() if not k.startswith("fc")}
    save_file(state, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert loaded.num_classes == 0
    assert all(torch.equal(loaded.state[name], tensor.to(loaded.state[name].dtype)) for name, tensor in state.items())
    assert loaded.build()(torch.zeros(1, 3, 32, 32)).shape == (1, 2048, 1, 1)


def test_loaded_state_model_and_file_are_separate(tiny, tmp_path):
    torch.save(tiny, tmp_path / "w.pth")
    loaded = load_weights(tmp_path / "w.pth")
    with (tmp_path / "w.pth").open("r+b") as file:  # torch maps the file into memory
        file.write(bytes((tmp_path / "w.pth").stat().st_size))
    loaded.build().conv1.weight.data.zero_()
    assert torch.equal(loaded.state["conv1.weight"], tiny["conv1.weight"])


def test_norton_checkpoint(tmp_path, image):
    spec = CompressionSpec.parse(2, "[0.5]+[0.9]*19", name="mine")
    model = randomise(NortonResNet(spec, 5, stride_in_1x1=True))
    model.preprocessing = MSRA
    save_checkpoint(tmp_path / "w.safetensors", model)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert (loaded.spec, loaded.preprocessing, loaded.num_classes, loaded.stride_in_1x1) == (spec, MSRA, 5, True)
    assert loaded.source == "norton checkpoint (fp32)"
    with torch.no_grad():
        assert torch.equal(model(image), loaded.build()(image))
    changed = load_weights(tmp_path / "w.safetensors", preprocessing=TORCHVISION, stride_in_1x1=False)
    assert (changed.preprocessing, changed.stride_in_1x1) == (TORCHVISION, False)


def test_torchvision_download_from_its_cache(dense, big_file, monkeypatch):
    # the file is where torchvision keeps it, so it is not fetched again; all else is torchvision's own path
    monkeypatch.setenv("TORCH_HOME", str(big_file))
    url = models.ResNet50_Weights.IMAGENET1K_V1.url
    file = big_file / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(half(dense.state_dict()), file)
    loaded = load_weights("torchvision://resnet50")
    assert loaded.source == "torchvision://resnet50/IMAGENET1K_V1 (fp16)"
    assert torch.equal(loaded.state["layer3.2.conv2.weight"], dense.state_dict()["layer3.2.conv2.weight"])


def test_torchvision_download_without_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(InputError, match=r"^torchvision://resnet101/IMAGENET1K_V2: .* elsewhere and pass the file$"):
        load_weights("torchvision://resnet101/IMAGENET1K_V2")
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "torchvision://resnext50_32x4d",
            "one of resnet18, resnet34, resnet50, resnet101, resnet152, got 'resnext50_32x4d'",
        ),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", "got another address; download it to a file"),
        ("torchvision://resnet50/IMAGENET22K", "expected weights IMAGENET1K_V1, IMAGENET1K_V2, got 'IMAGENET22K'"),
    ],
)
def test_addresses(source, told):
    with pytest.raises(InputError, match=told):
        load_weights(source)


# --- Detectron2 and Caffe2 --------------------------------------------------------------------------------------------


def caffe2_names(state, with_statistics: bool) -> dict[str, torch.Tensor]:
    """The blobs of a torchvision-named state in Detectron's layout, normalisation folded to scale and shift or not."""
    fields = {"weight": "s", "bias": "b"}
    if with_statistics:
        fields = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
    blobs = {}
    for name, tensor in state.items():
        parts = torchvision_to_d2(name).split(".")
        if parts[0] == "linear":
            blobs[f"fc1000_{parts[1][0]}"] = tensor
            continue
        if parts[-2] == "norm" and parts[-1] not in fields:
            continue
        suffix = f"bn_{fields[parts[-1]]}" if parts[-2] == "norm" else "w"
        if parts[0] == "stem":
            blobs["conv1_w" if suffix == "w" else f"res_conv1_{suffix}"] = tensor
            continue
        branch = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}[parts[2]]
        blobs[f"{parts[0]}_{parts[1]}_branch{branch}_{suffix}"] = tensor
    return blobs


def detectron2_features(file, image, stride_in_1x1: bool, identity: bool = False) -> dict[str, torch.Tensor]:
    """What Detectron2's ResNet-50 gives when its own checkpointer has read the file.

    ``identity`` keeps the variance 1 - eps, an exact identity, that Detectron2 builds its frozen normalisation with;
    its checkpointer fills in 1, which shrinks every normalisation by 5e-6 and res5 by 1e-4.
    """
    pytest.importorskip("detectron2", reason="needs Detectron2")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_resnet_backbone

    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = stride_in_1x1
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(backbone).load(str(file))
    if identity:
        for name, buffer in backbone.named_buffers():
            if name.endswith("running_var"):
                assert torch.all(buffer == 1)
                buffer -= 1e-5
    with torch.no_grad():
        return backbone(image)


def assert_features_equal(reference, loaded, image):
    with torch.no_grad():
        features = loaded.build().forward_features(image)
    for name, expected in reference.items():
        assert outputs_equal(expected, features[name]), name


@pytest.mark.parametrize("with_statistics", [False, True], ids=["scale and shift", "four statistics"])
def test_msra_weights_as_detectron2_reads_them(dense, image, big_file, with_statistics):
    file = big_file / "R-50.pkl"
    blobs = numpy(caffe2_names(dense.state_dict(), with_statistics))
    blobs |= {"conv1_b": np.ones(64, np.float32), "conv1_w_momentum": blobs["conv1_w"]}  # both stacks leave them out
    content = blobs if with_statistics else {"blobs": blobs}
    file.write_bytes(pickle.dumps(content, 2))
    loaded = load_weights(file)
    assert (loaded.preprocessing, loaded.stride_in_1x1, loaded.num_classes) == (MSRA, True, 7)
    assert loaded.source == "Caffe2 (MSRA) weights (fp32)"
    if not with_statistics:
        assert torch.all(loaded.state["bn1.running_mean"] == 0)
        assert torch.allclose((loaded.state["bn1.running_var"].double() + 1e-5).sqrt(), torch.ones(64).double())
    reference = detectron2_features(file, image, stride_in_1x1=True, identity=not with_statistics)
    assert_features_equal(reference, loaded, image)
    with torch.no_grad():  # the test would see a stride in the wrong place
        other = replace(loaded, stride_in_1x1=False).build().forward_features(image)
    assert not outputs_equal(reference["res3"], other["res3"], 1e-2)


def test_conversion_of_torchvision_weights(dense, image, big_file):
    state = {torchvision_to_d2(name).replace("linear.", "stem.fc."): t for name, t in dense.state_dict().items()}
    content = {"model": numpy(state), "__author__": "torchvision", "matching_heuristics": True}
    file = big_file / "r50.pkl"
    file.write_bytes(pickle.dumps(content))
    loaded = load_weights(file)
    assert (loaded.preprocessing, loaded.stride_in_1x1, loaded.num_classes) == (TORCHVISION, False, 7)
    assert_features_equal(detectron2_features(file, image, stride_in_1x1=False), loaded, image)
    with torch.no_grad():
        assert outputs_equal(dense(image), loaded.build()(image))


@pytest.mark.parametrize(
    ("author", "expected"),
    [("Caffe2", (MSRA, True)), ("MSRA", (MSRA, True)), ("torchvision", (TORCHVISION, False))],
)
def test_the_author_decides(tiny, tmp_path, author, expected):
    state = {torchvision_to_d2(name): tensor for name, tensor in tiny.items()}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": numpy(state), "__author__": author}))
    loaded = load_weights(tmp_path / "w.pkl")
    assert (loaded.preprocessing, loaded.stride_in_1x1) == expected


@pytest.mark.parametrize("kind", ["pkl", "pth"])
def test_detectron2_detector(tiny, tmp_path, kind):
    state = {
        f"backbone.bottom_up.{torchvision_to_d2(name)}": tensor
        for name, tensor in tiny.items()
        if not name.startswith("fc") and not name.endswith("num_batches_tracked")
    }
    state |= {"backbone.fpn_lateral2.weight": torch.zeros(256, 25, 1, 1), "roi_heads.box_head.fc1.bias": torch.zeros(9)}
    if kind == "pkl":
        content = {"model": numpy(state), "__author__": "Detectron2 Model Zoo"}
        (tmp_path / "m.pkl").write_bytes(pickle.dumps(content))
    else:
        torch.save({"model": state, "iteration": 5, "scheduler": {"last_epoch": 5}}, tmp_path / "m.pth")
    loaded = load_weights(tmp_path / f"m.{kind}")
    assert (loaded.preprocessing, loaded.stride_in_1x1, loaded.num_classes) == (MSRA, True, 0)
    assert loaded.source == "backbone of a Detectron2 detector (fp32)"
    own = load_weights(tmp_path / f"m.{kind}", preprocessing=TORCHVISION, stride_in_1x1=False)
    assert (own.preprocessing, own.stride_in_1x1) == (TORCHVISION, False)
    for name, tensor in loaded.build().state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, tiny[name])


def test_stored_pixel_statistics_decide(tiny, tmp_path):
    for scheme, known, stride in (
        (str, MSRA, False),
        (torchvision_to_d2, TORCHVISION, False),
        (torchvision_to_d2, MSRA, True),
    ):
        state = {f"backbone.bottom_up.{scheme(name)}": t for name, t in tiny.items() if not name.startswith("fc")}
        state["pixel_mean"] = torch.tensor(known.mean).view(3, 1, 1)
        state["pixel_std"] = torch.tensor(known.std).view(3, 1, 1)
        torch.save({"model": state}, tmp_path / "m.pth")
        loaded = load_weights(tmp_path / "m.pth")
        assert (loaded.preprocessing, loaded.stride_in_1x1) == (known, stride)


def test_torchvision_detector(image, big_file):
    detector = models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).eval()
    randomise(detector.backbone.body)
    torch.save({"model": half(detector.state_dict()), "args": argparse.Namespace(lr=1)}, big_file / "model_25.pth")
    loaded = load_weights(big_file / "model_25.pth")
    assert loaded.source == "backbone of a torchvision detector (fp16)"
    assert (loaded.preprocessing, loaded.num_classes) == (TORCHVISION, 0)
    detector.load_state_dict(half(detector.state_dict()))
    with torch.no_grad():
        expected, features = detector.backbone.body(image), loaded.build().forward_features(image)
    for stage in range(4):
        assert outputs_equal(expected[str(stage)], features[f"res{stage + 2}"])


# --- the NORTON release -----------------------------------------------------------------------------------------------


RATIOS = "[0.]+[0.9]*2+[0.85]*17"


@pytest.mark.parametrize(
    ("rank", "prefix", "states_spec"), [(1, "", True), (2, "module.", True), (1, "module.", False), (2, "", False)]
)
def test_release_checkpoint(image, tmp_path, rank, prefix, states_spec):
    spec = CompressionSpec.parse(rank, RATIOS)
    model = release_network(rank, spec)
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    assert f"{prefix}layer1.0.conv2.feature.pointwise.weight" in state
    content = {"state_dict": state, "best_top1_acc": torch.tensor(76.0), "epoch": 1}
    if states_spec:
        content |= {"rank": rank, "compress_rate": "[0.]+[0.9]*2+[0.85]*97"}
    torch.save(content, tmp_path / "norton.pt")
    loaded = load_weights(tmp_path / "norton.pt")
    assert loaded.source == "NORTON release checkpoint (fp32)"
    assert loaded.spec.rank == rank and loaded.spec.same_network(spec) and loaded.preprocessing == TORCHVISION
    assert not states_spec or loaded.spec.ratios == spec.ratios
    with torch.no_grad():
        assert outputs_equal(model(image), loaded.build()(image))


def test_release_detector(image, tmp_path):
    spec = CompressionSpec.parse(2, RATIOS)
    model = release_network(2, spec)
    state = {f"backbone.body.{name}": t for name, t in model.state_dict().items() if not name.startswith("fc")}
    torch.save({"model": state | {"rpn.head.cls_logits.bias": torch.zeros(3)}}, tmp_path / "model.pth")
    loaded = load_weights(tmp_path / "model.pth")
    assert loaded.source == "backbone of a NORTON release detector (fp32)" and loaded.num_classes == 0
    model.avgpool, model.fc = nn.Identity(), nn.Identity()
    with torch.no_grad():
        features = model(image).view(1, 2048, 2, 2)
        assert outputs_equal(features, loaded.build()(image))


def test_release_string_against_shapes(tmp_path):
    state = release_network(1, CompressionSpec.parse(1, RATIOS)).state_dict()
    torch.save({"state_dict": state, "rank": 1, "compress_rate": "[0.]+[0.5]*19"}, tmp_path / "norton.pt")
    with pytest.raises(InputError, match=r"norton\.pt: compress_rate: \[0\]\+\[0\.5\]\*19 leaves 128 .* has 25;"):
        load_weights(tmp_path / "norton.pt")


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(file) -> str:
    """The one line with which a file is refused; it starts with the file's name."""
    with pytest.raises(InputError) as caught:
        load_weights(file)
    message = str(caught.value)
    assert ONE_LINE.fullmatch(message) and message.startswith(f"{file}: ")
    assert "expected" in message or "missing" in message
    return message


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (models.vgg11, "got those of VGG"),
        (models.mobilenet_v2, "got those of VGG, MobileNet"),
        (models.wide_resnet50_2, "not Wide ResNet or ResNeXt"),
        (models.resnext50_32x4d, "not Wide ResNet or ResNeXt"),
        (models.vit_b_32, "got those of a vision transformer"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_other_architectures(tmp_path, build, told):
    with torch.device("meta"):
        state = build().state_dict()
    torch.save(state, tmp_path / "other.pth")
    assert told in refused(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bn1.running_mean": None}, "1 missing (first: bn1.running_mean)"),
        ({"projector.weight": torch.zeros(2)}, "got 1 others (first: projector.weight)"),
        ({"a\nb": torch.zeros(2)}, "got 1 others (first: a b)"),
        ({"layer2.1.bn2.bias": torch.zeros(3)}, "layer2.1.bn2.bias: expected shape (12,), got (3,)"),
        ({"fc.weight": torch.zeros(7, 512)}, "fc.weight: expected shape (classes, 2048), got (7, 512)"),
        ({"fc.weight": None, "fc.bias": None, "layer1.0.conv1.weight": torch.zeros(6)}, "4 dimensions"),
        ({"bn1.weight": torch.full((32,), torch.nan)}, "bn1.weight: expected finite values, got 32 of 32"),
        ({"fc.bias": torch.full((7,), torch.inf)}, "fc.bias: expected finite values, got 7 of 7"),
        ({"bn1.running_var": torch.full((32,), -1.0)}, "bn1.running_var: expected variances"),
        ({"bn1.bias": torch.zeros(32, dtype=torch.int8)}, "expected floating point numbers, got torch.int8"),
        ({"bn1.bias": torch.zeros(32, dtype=torch.complex64)}, "expected a dense tensor of real numbers"),
        ({"bn1.bias": torch.zeros(32, device="meta")}, "expected a dense tensor of real numbers"),
        ({"bn1.bias": torch.zeros(32).to_sparse()}, "expected a dense tensor of real numbers"),
        ({"fc.weight": torch.zeros(1, 1).expand(20_000, 2048), "fc.bias": torch.zeros(20_000)}, "got fewer"),
        ({"fc.weight": torch.zeros(1, 1).expand(10**9, 2048)}, "expected shape (classes, 2048)"),
    ],
)
def test_damaged_states(tiny, tmp_path, change, told):
    state = {name: tensor for name, tensor in (dict(tiny) | change).items() if tensor is not None}
    torch.save(state, tmp_path / "w.pth")
    assert told in refused(tmp_path / "w.pth")


def test_files_that_are_no_weights(tiny, tmp_path):
    file = tmp_path / "w.pth"
    assert "no such file" in refused(file)
    file.write_bytes(b"")
    assert "an empty file" in refused(file)
    for text in (b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:12"):
        file.write_bytes(text)
        assert "got text that starts" in refused(file)
    file.write_bytes(bytes(range(200, 255)))
    assert "an unknown format" in refused(file)
    assert "got a folder" in refused(tmp_path)
    for content, told in (([1], "got list"), ({}, "no tensors"), ({"model": {"a": 1}}, "no tensors")):
        torch.save(content, file)
        assert told in refused(file)
    torch.save(torch.zeros(3), file)
    assert "got Tensor" in refused(file)
    save_file({"x": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert "unknown names (first: x)" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "norton", "pkl"])
def test_truncated_files(tiny, tmp_path, kind):
    file = tmp_path / f"w.{'pkl' if kind == 'pkl' else 'bin'}"
    if kind in ("zip", "legacy"):
        torch.save(tiny, file, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "pkl":
        file.write_bytes(pickle.dumps({"model": numpy(tiny), "__author__": "torchvision"}))
    elif kind == "safetensors":
        save_file(tiny, file)
    else:
        save_checkpoint(file, NortonResNet(TINY, 2).eval())
    load_weights(file)
    data = file.read_bytes()
    for part in (0.999, 0.5, 0.01):
        file.write_bytes(data[: int(len(data) * part)])
        assert "damaged" in refused(file)
    file.write_bytes(data[:70])
    refused(file)


class Runs:
    """An object whose pickle runs a command when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_commands_in_torch_files_are_not_run(tiny, tmp_path, zipped):
    file, mark = tmp_path / "w.pth", tmp_path / "ran"
    torch.save({"model": tiny, "x": Runs(f"touch {mark}")}, file, _use_new_zipfile_serialization=zipped)
    assert "system" in refused(file)
    assert not mark.exists()
    torch.load(file, weights_only=False)  # it would have run
    assert mark.exists()


def test_commands_in_pickles_are_not_run(tiny, tmp_path):
    file, mark = tmp_path / "R-50.pkl", tmp_path / "ran"
    file.write_bytes(pickle.dumps({"model": numpy(tiny), "__author__": Runs(f"touch {mark}")}))
    assert "system; nothing was run" in refused(file)
    assert not mark.exists()


def test_whole_models_and_scripts_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    assert "asks for torch.nn.modules.linear.Linear" in refused(tmp_path / "whole.pth")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "script.pt")
    assert "TorchScript" in refused(tmp_path / "script.pt")


def test_archive_that_grows_absurdly(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}.")
        archive.writestr("w/data/0", bytes(10_000_000))
    assert "grows absurdly" in refused(tmp_path / "w.pth")

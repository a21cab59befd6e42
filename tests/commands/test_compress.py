"""tools/compress.py as a user runs it: networks and detectors, calibrated or not, and what is refused."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from norton_det.checkpoint.load import load_checkpoint
from norton_det.checkpoint.opened import open_weights
from norton_det.compression.resnet import compress
from norton_det.models.spec import CompressionSpec
from norton_det.models.stacks import stack_of
from tests import REPOSITORY, process

from .shared import LIGHT, command, one_error


def test_compress_end_to_end(half, tmp_path):
    """In a process of its own; the tool gives what the library gives."""
    output, report = tmp_path / "new" / "small.safetensors", tmp_path / "report.json"
    done = command(
        "tools/compress.py", "--weights", half, "--preset", "norton-78", "--output", output, "--json", report
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "decompose" in done.stderr  # the progress bar
    lines = done.stdout.splitlines()
    assert lines[0] == f"{half}: torchvision state dict (fp16)"
    assert re.fullmatch(rf"{output}: \d+\.\d MB", lines[-1])
    assert "layer4.2.conv2" in done.stdout and "params 23.53 -> 3.86 M" in done.stdout
    model = load_checkpoint(output)
    expected = compress(torch.load(half, weights_only=True), CompressionSpec.preset("norton-78"))
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    written = json.loads(report.read_text())
    assert written["kept"] == json.loads(json.dumps(expected.report.to_dict()))["kept"]
    assert written["params"] == list(expected.report.params) and written["spec"]["name"] == "norton-78"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["report.json", "small.safetensors"]


def test_compress_quiet_by_rank_and_ratios(call, half, tmp_path):
    output = tmp_path / "small.safetensors"
    words = (
        "--weights",
        half,
        "--output",
        output,
        "--rank",
        "none",
        "--ratios",
        LIGHT,
        "--criterion",
        "norm",
        "--quiet",
    )
    status, out, err = call("tools/compress.py", *words)
    assert (status, err) == (0, "") and len(out.splitlines()) == 4
    assert open_weights(output).described.spec == CompressionSpec.parse(None, LIGHT)
    # once compressed it is only converted, and not compressed again
    again = tmp_path / "again.safetensors"
    status, out, err = call("tools/compress.py", "--weights", output, "--output", again)
    assert (status, err) == (0, "") and "converted" in out
    found, expected = open_weights(again).state, open_weights(output).state
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    words = ("--weights", output, "--output", tmp_path / "x.safetensors", "--preset", "norton-78")
    status, _, err = call("tools/compress.py", *words)
    one_error(status, err, "expected dense weights, got resnet50 .*; drop the ranks or the target")
    assert not (tmp_path / "x.safetensors").exists()


def test_compress_a_whole_detector(call, tmp_path):
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.save({"model": model.state_dict(), "epoch": 25}, tmp_path / "model_25.pth")
    output = tmp_path / "detector.safetensors"
    words = ("--weights", tmp_path / "model_25.pth", "--output", output, "--rank", "none", "--ratios", LIGHT, "--quiet")
    status, out, _ = call("tools/compress.py", *words)
    assert status == 0 and out.splitlines()[-1].endswith("MB (whole detector)")
    found = open_weights(output).state
    assert found.keys() == model.state_dict().keys()
    assert found["backbone.fpn.inner_blocks.0.0.weight"].shape == (256, 179, 1, 1)
    assert found["backbone.body.layer1.0.conv3.weight"].shape == (179, 44, 1, 1)
    assert torch.equal(found["roi_heads.box_head.fc6.weight"], model.state_dict()["roi_heads.box_head.fc6.weight"])
    assert open_weights(output).described.spec == CompressionSpec.parse(None, LIGHT)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--weights", "none.pth", "--preset", "norton-78"], "none.pth: expected weights .*found no such file"),
        (
            ["--weights", "cut.pth", "--preset", "norton-78"],
            "cut.pth: expected a torch file, got a truncated or damaged",
        ),
        (["--weights", "cut.safetensors", "--preset", "norton-78"], "cut.safetensors: expected a safetensors file"),
        (["--weights", "resnet18.pth", "--ratios", "[0.]*20"], "expected 11 .stem and stage 1 together, 2 stages, 8 b"),
        (["--weights", "shallow.pth", "--preset", "norton-78"], "basic blocks per stage: .* got .1, 1, 1, 1."),
        (
            ["--weights", "vgg.pth", "--preset", "norton-78"],
            "expected ResNet-18, -34, -50, -101 or -152 weights, got those of VGG",
        ),
        (["--weights", "nan.pth", "--preset", "norton-78"], "bn1.bias: expected finite values"),
        (["--weights", "HALF", "--preset", "norton-87"], "preset: expected one of .*norton-78, got 'norton-87'"),
        (["--weights", "HALF", "--rank", "10"], "rank: expected 1 to 9 .*got 10"),
        (["--weights", "HALF", "--rank", "one"], "rank: expected a list"),
        (["--weights", "HALF", "--ratios", "[0.]*100"], r"ratios: expected 20 .*got 100; use ratios\[:20\]"),
        (["--weights", "HALF", "--ratios", "[0.]+[1.0]*19"], r"ratios\[1\]: expected 0 <= ratio < 1, got 1"),
        (["--weights", "HALF", "--ratios", "__import__('os')"], "ratios: expected a list"),
        (["--weights", "HALF", "--preset", "norton-78", "--criterion", "l2"], "criterion: expected one of .*pabs"),
        (["--weights", "HALF", "--preset", "norton-78", "--rank", "1"], "drop --preset norton-78"),
        (["--weights", "HALF"], "expected what to compress to; give --preset norton-78"),
        (["--weights", "HALF", "--preset", "norton-78", "--output", "out/x.pth"], "a name ending in .safetensors, got"),
        (["--weights", "torchvision://vgg16", "--preset", "norton-78"], "torchvision://vgg16: expected"),
    ],
)
def test_compress_refuses(call, half, tmp_path, monkeypatch, words, pattern):
    monkeypatch.chdir(tmp_path)
    file = words[1]
    if file.startswith("cut"):
        if file.endswith("safetensors"):
            state = {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
            save_file(state, file)
        else:
            torch.save({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, file)
        Path(file).write_bytes(Path(file).read_bytes()[:-700])
    elif file == "resnet18.pth":
        torch.save(torchvision.models.resnet18().state_dict(), file)
    elif file == "shallow.pth":
        torch.save(torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1] * 4).state_dict(), file)
    elif file == "vgg.pth":
        torch.save({"features.0.weight": torch.zeros(2), "classifier.0.weight": torch.zeros(2)}, file)
    elif file == "nan.pth":
        state = torch.load(half, weights_only=True)
        state["bn1.bias"] = state["bn1.bias"] * torch.nan
        torch.save(state, file)
    before = sorted(tmp_path.iterdir())
    words = [str(half) if word == "HALF" else word for word in words]
    output = [] if "--output" in words else ["--output", "out/small.safetensors"]
    status, _, err = call("tools/compress.py", *words, *output, "--quiet", "--json", "out/report.json")
    one_error(status, err, pattern)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_is_not_what_compress_takes(tmp_path, call):
    """torch.save(model) needs code to be run when it is read; it is refused by name."""
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    words = ("--weights", tmp_path / "model.pth", "--output", tmp_path / "x.safetensors", "--preset", "norton-78")
    status, _, err = call("tools/compress.py", *words)
    one_error(
        status, err, "expected tensors only, got a file that asks for torch.nn.modules.linear.Linear; nothing was"
    )


def test_compress_calibrates(calibrated):
    output, done = calibrated
    assert done.returncode == 0, done.stderr
    assert re.search(r"skipped, cannot be read: \S+class3/1\.png\n", done.stdout)
    assert re.search(r"images: 19 images, resize 36, crop 32\n", done.stdout)
    assert "criterion css; decompose" in done.stdout and "calibrate" in done.stdout
    assert all(bar in done.stderr for bar in ("decompose", "channels", "calibrate"))
    assert load_checkpoint(output).num_classes == 10


def test_compress_whole_detectors(call, repository, tmp_path):
    """A torchvision detector's state dict, and one of Detectron2's, to files that carry all."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    from norton_det.d2 import load_config
    from norton_det.d2.build import build_detector
    from norton_det.tv import fasterrcnn_norton_resnet50_fpn

    dense = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.save(dense.state_dict(), tmp_path / "tv.pth")
    config = repository / "configs" / "dense_faster_rcnn.yaml"
    torch.save({"model": build_detector(load_config(str(config))).state_dict()}, tmp_path / "d2.pth")
    ranks = ["--rank", "none", "--ratios", "[0.]+[0.5]*19", "--neck-rank", 1, "--box-head-rank", 16, "--quiet"]
    for name, stack in (("tv", "torchvision"), ("d2", "detectron2")):
        target = tmp_path / f"{name}.safetensors"
        words = ["--weights", tmp_path / f"{name}.pth", "--output", target, *ranks]
        status, out, err = call("tools/compress.py", *words, "--json", tmp_path / f"{name}.json")
        assert status == 0, err
        assert "detector: MACs 13" in out and "(whole detector)" in out
        assert sorted(open_weights(target).described.layout.values()) == [1] * 5 + [16] * 2
        assert len(json.loads((tmp_path / f"{name}.json").read_text())["layers"]) == 7
        assert stack_of(load_checkpoint(target)).name == stack
    small = fasterrcnn_norton_resnet50_fpn(weights=tmp_path / "tv.safetensors")
    assert small.norton_info.num_classes == 4


def test_compress_keeps_its_input(call, half, tmp_path):
    copy = tmp_path / "dense.safetensors"
    save_file({name: tensor.clone() for name, tensor in torch.load(half, weights_only=True).items()}, copy)
    content = copy.read_bytes()
    status, _, err = call("tools/compress.py", "--weights", copy, "--preset", "norton-78", "--output", copy)
    one_error(status, err, "--output: expected another file than --weights")
    assert copy.read_bytes() == content


QUICK = ("--rank", "[1]+[0]*15", "--ratios", "[0.]+[0.9]*19", "--quiet")


def start(weights: Path, output: Path) -> int:
    """tools/compress.py in a fork, quick as it can be: its process."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            words = ["--weights", str(weights), "--output", str(output), *QUICK]
            process.script([str(REPOSITORY / "tools/compress.py"), *words])()
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        finally:
            os._exit(1)
    return pid


def test_compress_is_killed_while_it_writes(call, half, tmp_path):
    """What was there before stays, and the next run ends well."""
    output = tmp_path / "small.safetensors"
    output.write_bytes(b"earlier")
    pid = start(half, output)
    while not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part")):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended by itself"
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert output.read_bytes() == b"earlier"
    status, _, err = call("tools/compress.py", "--weights", half, "--output", output, *QUICK)
    assert (status, err) == (0, "") and load_checkpoint(output).spec.rank == (1, *[0] * 15)


def test_two_compress_to_one_file(half, tmp_path):
    pids = [start(half, tmp_path / "small.safetensors") for _ in range(2)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert statuses in ([0, 0], [0, 2], [2, 0])
    assert load_checkpoint(tmp_path / "small.safetensors").spec.rank == (1, *[0] * 15)

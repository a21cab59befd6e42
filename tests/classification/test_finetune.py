"""Accuracy and fine-tuning, on a small network's scale: a few tiny pictures."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from norton_det.checkpoint.load import load_checkpoint
from norton_det.classification.accuracy import evaluate
from norton_det.classification.finetune import fine_tune
from norton_det.classification.losses import feature_distance
from norton_det.classification.recipe import Recipe
from norton_det.compression.precise_bn import reestimate_batch_norm
from norton_det.compression.resnet import compress
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

SPEC = CompressionSpec.parse(1, "[0.5]+[0.75]*3+[0.9]*16")
QUICK = Recipe(epochs=2, batch_size=16, learning_rate=0.002, workers=0)


@pytest.fixture(scope="module")
def data():
    """Two classes: bright left or bright right."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(32, 3, 64, 64, generator=generator)
    labels = torch.arange(32) % 2
    images[labels == 0, :, :, :32] += 1
    images[labels == 1, :, :, 32:] += 1
    return TensorDataset(images, labels)


@pytest.fixture(scope="module")
def dense(data):
    """Random weights, with the statistics of the pictures: outputs are of order 1."""
    torch.manual_seed(0)
    model = NortonResNet(CompressionSpec.dense(), 2).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(parameter, 0.3)
    reestimate_batch_norm(model, [data.tensors[0]])
    return model


@pytest.fixture
def fresh(dense, data):
    """Makes the same compressed network anew."""

    def make():
        model = compress(dense, SPEC, criterion="norm").model
        reestimate_batch_norm(model, [data.tensors[0]])
        return model

    return make


@pytest.fixture
def small(fresh):
    return fresh()


class Fixed(nn.Module):
    def forward(self, x):
        return x[:, :, 0, 0]


def test_evaluate():
    """Logits given as pictures: first, among five, and what does not count."""
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 0], [8.0, 9, 7, 6, 5, 0], [9.0, 8, 7, 6, 0, 5], [9.0, 8, 7, 6, 5, 0]])
    batches = [(logits[:2, :, None, None], torch.tensor([0, 0])), (logits[2:, :, None, None], torch.tensor([4, -1]))]
    found = evaluate(Fixed().train(), batches)
    assert found.images == 3 and found.skipped == (3,)
    assert found.top1 == pytest.approx(100 / 3) and found.top5 == pytest.approx(200 / 3)
    with pytest.raises(InputError, match="expected images that can be read, got none"):
        evaluate(Fixed(), [(logits[:1, :, None, None], torch.tensor([-1]))])


def test_evaluated_weights_can_be_trained(data):
    """Also where evaluation changes their memory format."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    evaluate(model, [(data.tensors[0], data.tensors[1])])
    model(data.tensors[0]).sum().backward()
    assert model[0].weight.grad is not None


def test_fine_tuning_learns_and_writes(small, data, tmp_path):
    rows = fine_tune(small, data, data, replace(QUICK, epochs=8), tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert rows[-1]["loss"] < rows[0]["loss"] and max(row["top1"] for row in rows) > 80
    best = load_checkpoint(tmp_path / "best.safetensors")
    loader = [(data.tensors[0], data.tensors[1])]
    assert evaluate(best, loader).top1 == max(row["top1"] for row in rows) and best.spec == SPEC
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["epochs"] == rows and written["recipe"]["epochs"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", "last.pth", "metrics.json"]


def test_resume_is_exact(fresh, data, tmp_path, monkeypatch):
    """A run that ends after the first epoch and goes on gives the weights of a run that does not end."""
    from norton_det.classification import finetune

    recipe = replace(QUICK, ema=0.5, epochs=3)
    whole = fresh()
    rows = fine_tune(whole, data, data, recipe, tmp_path / "whole")
    record = finetune._Run._record

    def interrupted(self, *arguments):
        record(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune._Run, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(fresh(), data, data, recipe, tmp_path / "cut")
    monkeypatch.setattr(finetune._Run, "_record", record)
    again = fresh()
    resumed = fine_tune(again, data, data, recipe, tmp_path / "cut", resume=True)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in rows]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    other = replace(recipe, epochs=4)
    with pytest.raises(InputError, match="steps: expected 6 as in the run to resume, got 8"):
        fine_tune(again, data, data, other, tmp_path / "cut", resume=True)


def test_distillation_pulls_towards_the_teacher(dense, small, data, tmp_path):
    """With no weight on labels the student's outputs come closer to the teacher's."""
    images = data.tensors[0]
    student = small
    recipe = replace(QUICK, epochs=8, distill=1.0, features=1.0, ema=0.0)

    def gap():
        with torch.no_grad():
            student.eval()
            return float((student(images).log_softmax(1) - dense(images).log_softmax(1)).square().mean())

    before, teacher = gap(), {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    fine_tune(student, data, data, recipe, tmp_path, teacher=dense)
    assert gap() < before
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in dense.state_dict().items())
    with pytest.raises(InputError, match="distillation needs the dense network, got none"):
        fine_tune(student, data, data, recipe, tmp_path)


def test_feature_distance(generator):
    maps = torch.rand(2, 6, 4, 4, generator=generator)
    assert feature_distance(maps, maps) == 0
    assert feature_distance(torch.zeros_like(maps), maps) == pytest.approx(1)
    assert feature_distance(maps[:, :3].repeat(1, 2, 1, 1)[:, :5], maps[:, :3].repeat(1, 2, 1, 1)) < 0.1
    assert feature_distance(3 * maps[:, :4], maps[:, :4].repeat(1, 2, 1, 1)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("learning_rate", -1.0), ("momentum", 1.0), ("distill", 1.1), ("ema", 1.0), ("amp", "int8")],
)
def test_recipe_refuses(field, value):
    with pytest.raises(InputError, match=f"recipe: {field}: expected .*, got "):
        Recipe(**{field: value})


def test_batches_larger_than_the_data(small, data, tmp_path):
    with pytest.raises(InputError, match="batch_size: expected no more than the images, got 64"):
        fine_tune(small, data, data, replace(QUICK, batch_size=64), tmp_path)


def test_a_loss_that_diverges_is_told(small, data, tmp_path):
    with pytest.raises(InputError, match=r"step \d+: expected a finite loss, got (nan|inf); lower the learning rate"):
        fine_tune(small, data, data, replace(QUICK, learning_rate=1e30), tmp_path)


def test_damaged_state(small, data, tmp_path):
    (tmp_path / "last.pth").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="expected the state of this network's fine-tuning"):
        fine_tune(small, data, data, QUICK, tmp_path, resume=True)
    with pytest.raises(InputError, match="found no such file"):
        fine_tune(small, data, data, QUICK, tmp_path / "none", resume=True)


@pytest.mark.parametrize("amp", ["bfloat16"])
def test_mixed_precision(small, data, tmp_path, amp):
    rows = fine_tune(small, data, data, replace(QUICK, epochs=0.5, amp=amp), tmp_path)
    assert rows[0]["epoch"] == 0.5 and all(p.dtype == torch.float32 for p in small.parameters())


def test_processes_share_the_batch(small, tmp_path, repository):
    """Two processes on the CPU: one set of files, the same weights on both, and the images are not seen twice."""
    pytest.importorskip("PIL")
    from PIL import Image

    from norton_det.checkpoint.save import save_checkpoint

    save_checkpoint(tmp_path / "small.safetensors", small)
    for part in ("train", "val"):
        for name in ("left", "right"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (40, 40), (30 * index, 255 * (name == "left"), 0)).save(folder / f"{index}.png")
    words = [
        "--nproc-per-node",
        "2",
        "--master-port",
        str(29000 + os.getpid() % 2000),
        repository / "tools/finetune.py",
    ]
    words += ["--weights", tmp_path / "small.safetensors", "--data", tmp_path / "data", "--output", tmp_path / "out"]
    words += ["--epochs", "2", "--batch-size", "8", "--workers", "0", "--image-size", "32", "--resize", "36", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2]  # 16 images: 2 steps of 8 an epoch, 4 for each process
    assert done.stdout.count("best Top-1") == 1
    assert load_checkpoint(tmp_path / "out" / "best.safetensors").num_classes == 2

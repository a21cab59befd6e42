"""The commands as a user runs them: help with examples, real runs end to end, bad input in one line."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from norton_det.checkpoint.load import load_checkpoint
from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.save import save_checkpoint
from norton_det.compression.resnet import compress
from norton_det.models.spec import CompressionSpec
from tests import REPOSITORY

COMMANDS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("tools", "datasets")
    for path in (REPOSITORY / folder).glob("*.py")
    if "norton_det.commands" in path.read_text()  # set-up has its own
)
LIGHT = "[0.]+[0.3]*19"


def command(name: str, *arguments: object, datasets: Path | None = None) -> subprocess.CompletedProcess:
    """The same in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"DETECTRON2_DATASETS": str(datasets)} if datasets else {})
    words = [sys.executable, str(REPOSITORY / name), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment, check=False)


def one_error(status: int, err: str, pattern: str) -> None:
    """Status 2 and one line ``error: ...``."""
    assert status == 2 and re.fullmatch(r"error: [^\n]+\n", err) and re.search(pattern, err), err


@pytest.mark.parametrize("name", COMMANDS)
def test_help(call, name):
    status, out, _ = call(name, "--help")
    assert status == 0 and "examples:" in out
    examples = out.split("examples:")[1]
    assert f"{name} " in examples or f"{name}\n" in examples
    assert os.access(REPOSITORY / name, os.X_OK)


def test_all_commands_are_there():
    assert {"tools/compress.py", "tools/train_net.py", "tools/benchmark.py"} <= set(COMMANDS)


# --- compress --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """torchvision's ResNet-50 in half precision, random."""
    state = torchvision.models.resnet50(num_classes=10).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, path)
    return path


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


# --- benchmark -------------------------------------------------------------------------------------------------------

QUICK_TEST = ["MODEL.RPN.PRE_NMS_TOPK_TEST", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20]


def test_benchmark(call, tmp_path):
    import cv2
    import numpy as np

    picture = tmp_path / "street.png"
    cv2.imwrite(str(picture), np.zeros((40, 50, 3), np.uint8))
    words = [
        "--config",
        "norton_faster_rcnn.yaml",
        "--size",
        64,
        64,
        "--rounds",
        1,
        "--threads",
        1,
        "--whole",
        "--parts",
    ]
    words += [
        "--image",
        picture,
        "--json",
        tmp_path / "speed.json",
        "--markdown",
        tmp_path / "speed.md",
        "--train-step",
    ]
    words += ["--plot", tmp_path / "speed.png", "--forms", "eager,fused,deploy,deploy-bf16"]
    status, out, err = call("tools/benchmark.py", *words, *QUICK_TEST, "MODEL.WEIGHTS", "")
    assert status == 0, err
    written = json.loads((tmp_path / "speed.json").read_text())
    rows = {(row["model"], row["form"]): row for row in written["tables"]["norton_faster_rcnn"]}
    assert list(rows)[:3] == [("dense", "eager"), ("norton", "eager"), ("dense", "fused")] and len(rows) == 10
    assert written["size"] == [64, 64] and rows["dense", "eager"]["vs_eager"] == 1
    assert all(row["fps"] == pytest.approx(1e3 / row["ms"]) and row["p95"] >= 0 for row in rows.values())
    dense, small = rows["dense", "deploy"], rows["norton", "deploy"]
    assert (
        small["macs"] < dense["macs"] / 3 and small["params"] < dense["params"] / 3 and small["bytes"] < dense["bytes"]
    )
    assert small["vs_dense"] == pytest.approx(dense["ms"] / small["ms"])
    assert set(small["parts"]) == {
        "prepare",
        "backbone",
        "rpn_head",
        "proposals",
        "pooling",
        "box_head",
        "rest",
        "finish",
    }
    assert set(rows["norton", "eager"]["parts"]) == {"backbone", "rpn", "roi_heads", "rest"}
    assert "compressed too" not in out and rows["dense", "fused"]["parts"]["backbone"] > 0
    assert rows["norton", "training step"]["vs_eager"] is None
    assert "1 threads" in written["environment"]
    assert "64x64, batch 1, median of 1 interleaved frames" in out and "| norton | deploy |" in out
    assert (tmp_path / "speed.md").read_text().count("| dense |") == 5 and (
        tmp_path / "speed.png"
    ).stat().st_size > 5000


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--config", "none.yaml"], "none.yaml: expected a config file"),
        (["--config", "norton_faster_rcnn.yaml", "--weights", "none.pth"], "none.pth: expected the weights of"),
        (["--config", "norton_faster_rcnn.yaml", "--rounds", "0"], "--rounds, --threads: expected 1 or more"),
        (["--config", "norton_faster_rcnn.yaml", "--size", "0", "64"], "--size, "),
        (["--config", "norton_faster_rcnn.yaml", "--threads", "0"], "--threads: "),
        (["--config", "norton_faster_rcnn.yaml", "--forms", "eager,tensorrt"], "--forms: expected some of eager"),
        ([], "expected detectors; give --config"),
        (["--config", "norton_faster_rcnn.yaml", "MODEL.NORTON.PRESET", "norton-1"], "preset: expected one of"),
        (
            ["--config", "norton_faster_rcnn.yaml", "--image", str(Path(__file__))],
            "expected an image, got a damaged or other file",
        ),
    ],
)
def test_benchmark_refuses(call, tmp_path, monkeypatch, words, pattern):
    monkeypatch.chdir(tmp_path)
    status, _, err = call("tools/benchmark.py", "--json", "speed.json", *words)
    one_error(status, err[err.rfind("error: ") :], pattern)
    assert not list(tmp_path.iterdir())


# --- export, evaluate_detector, tradeoff -----------------------------------------------------------------------------


def test_export_and_evaluate(tmp_path, shared):
    """A fresh detector of the generated shapes as an ONNX file: the same pictures, the same metrics."""
    pytest.importorskip("onnxruntime")
    content = json.loads((shared / "data" / "bccd" / "annotations" / "test.json").read_text())
    content["images"] = content["images"][:3]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    (tmp_path / "few.json").write_text(json.dumps(content))
    images = shared / "data" / "bccd" / "test"
    config = ["--config", "bccd_norton_faster_rcnn.yaml"]
    small = [*QUICK_TEST, "INPUT.MIN_SIZE_TEST", 96, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.WEIGHTS", ""]
    picture = images / content["images"][0]["file_name"]
    words = ["--output", tmp_path / "d.onnx", "--check", picture, "--json", tmp_path / "parity.json", "--quiet"]
    done = command("tools/export.py", *config, *words, *small)  # engines have threads of their own: not in here
    assert done.returncode == 0, done.stderr[-2000:]
    out = done.stdout
    row = json.loads((tmp_path / "parity.json").read_text())[str(picture)]
    assert row["expected"] == row["found"] > 0 and "ONNX Runtime" in out
    words = ["--weights", tmp_path / "d.onnx", "--dataset", "few_export", "--json", tmp_path / "ap.json", "--quiet"]
    words += ["--register", f"few_export={tmp_path / 'few.json'}:{images}"]
    done = command("tools/evaluate_detector.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    out = done.stdout
    assert out.splitlines()[0] == "few_export, ONNX Runtime, f32" and "AP50" in out
    written = json.loads((tmp_path / "ap.json").read_text())
    assert {"AP", "AP50", "AR100"} <= set(written["bbox"]) and written["detector"]["ms"] > 0 < written["detector"][
        "macs"
    ]


def test_tradeoff(call, half, tmp_path, monkeypatch, datasets):
    """Dense, one case and one trained detector: evaluated, timed, drawn; a second run takes up what is there."""
    monkeypatch.chdir(tmp_path)
    few = subset(datasets / "bccd" / "annotations" / "test.json", tmp_path / "few.json", 2)
    from norton_det.d2.build import build_detector, load_config
    from norton_det.data.register import register_coco_folder

    register_coco_folder("few_tradeoff", few, datasets / "bccd" / "test")
    opts = [*map(str, QUICK_TEST), "INPUT.MIN_SIZE_TEST", "96", "DATASETS.TEST", "('few_tradeoff',)"]
    detector = build_detector(load_config("bccd_dense_faster_rcnn.yaml", [*opts, "MODEL.WEIGHTS", ""]))
    torch.save({"model": detector.state_dict()}, "dense.pth")
    words = ["--config", "bccd_dense_faster_rcnn.yaml", "--weights", "dense.pth", "--images", 3, "--rounds", 1]
    words += ["--calibrate", datasets / "bccd" / "val", "--case", "norton-78,box=16", "--form", "deploy"]
    words += ["--size", 96, 96, "--output", "out", "--trained", "same again=dense.pth"]
    status, out, err = call("tools/tradeoff.py", *words, *opts)
    assert status == 0, err
    rows = (tmp_path / "out" / "tradeoff.csv").read_text().splitlines()
    assert [row.split(",AP")[0].split(",")[0].strip('"') for row in rows] == [
        "case",
        "dense",
        "same again",
        "norton-78",
    ]
    assert (tmp_path / "out" / "tradeoff.png").stat().st_size > 5000 and "96x96, median of 1" in out
    written = (tmp_path / "out" / "norton-78_box16.safetensors").stat().st_mtime_ns
    status, _, err = call("tools/tradeoff.py", *words, *opts)
    assert status == 0, err
    assert (tmp_path / "out" / "norton-78_box16.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("tool", "words", "pattern"),
    [
        ("export", ["--output", "x.xml"], "expected a detector; give --config FILE"),
        ("export", ["--output", "x.xml", "--precision", "int8", "--weights", "HALF"], "--calibrate: expected pictures"),
        ("export", ["--output", "x.xml", "--weights", "none.pth"], "none.pth: expected"),
        ("export", ["--output", "x.bin", "--config", "norton_faster_rcnn.yaml"], "x.bin: expected a name ending in"),
        ("evaluate_detector", ["--weights", "none.xml", "--dataset", "nowhere"], "data set 'nowhere': expected"),
        (
            "tradeoff",
            ["--config", "none.yaml", "--weights", "HALF", "--calibrate", "."],
            "none.yaml: expected a config",
        ),
        (
            "tradeoff",
            [
                "--config",
                "norton_faster_rcnn.yaml",
                "--weights",
                "HALF",
                "--calibrate",
                ".",
                "--case",
                "norton-78,fc=3",
            ],
            "--case norton-78,fc=3: expected neck=R, head=R, box=R",
        ),
    ],
)
def test_deployment_tools_refuse(call, half, tmp_path, monkeypatch, tool, words, pattern):
    monkeypatch.chdir(tmp_path)
    words = [str(half) if word == "HALF" else word for word in words]
    status, _, err = call(f"tools/{tool}.py", *words)
    one_error(status, err[err.rfind("error: ") :], pattern)
    assert not list(tmp_path.iterdir())


# --- train_net -------------------------------------------------------------------------------------------------------

SMALL_RUN = [
    *("SOLVER.IMS_PER_BATCH", 1, "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", 0, "SEED", 1),
    *("INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", 128, "TEST.DETECTIONS_PER_IMAGE", 10),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *QUICK_TEST,
]
BOXES = ["AP", "AP50", "AP75", "AR1", "AR10", "AR100"]
COLUMNS = {
    "faster": {"bbox": BOXES},
    "mask": {"bbox": BOXES, "segm": BOXES},
    "keypoint": {"bbox": BOXES, "keypoints": ["AP", "AP50", "AP75", "AR", "AR50", "AR75"]},
}


def subset(source: Path, target: Path, count: int) -> Path:
    """The first ``count`` images of a COCO file that have objects."""
    content = json.loads(source.read_text())
    used = [annotation["image_id"] for annotation in content["annotations"] if annotation.get("num_keypoints", 1)]
    content["images"] = [image for image in content["images"] if image["id"] in used][:count]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    target.write_text(json.dumps(content))
    return target


def table(stdout: str) -> list[list[str]]:
    """The last lines of the tool, from the data set's name on."""
    lines = stdout.splitlines()
    return [line.split() for line in lines[max(i for i, line in enumerate(lines) if line == "few") :]]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, shared) -> Path:
    """A folder for DETECTRON2_DATASETS with links to the real data."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "coco").symlink_to(shared / "data" / "coco-mini")
    (folder / "bccd").symlink_to(shared / "data" / "bccd")
    return folder


@pytest.mark.parametrize("task", COLUMNS)
def test_train_on_real_pictures(datasets, real_weights_path, tmp_path, task):
    """Real weights, compressed on the way, trained and evaluated on COCO; then evaluated from the file alone."""
    pytest.importorskip("detectron2")
    kind = "person_keypoints" if task == "keypoint" else "instances"
    few = subset(datasets / "coco" / "annotations" / f"{kind}_val2017.json", tmp_path / "few.json", 3)
    config = ["--config", f"norton_{task}_rcnn.yaml", "--register", f"few={few}:{datasets / 'coco' / 'val2017'}"]
    common = [*SMALL_RUN, "DATASETS.TEST", "('few',)", "OUTPUT_DIR", tmp_path / "out"]
    start = ["MODEL.WEIGHTS", real_weights_path, "SOLVER.MAX_ITER"]
    results, last = tmp_path / "results.json", tmp_path / "out" / "model_final.pth"

    done = command("tools/train_net.py", *config, "--json", results, *common, *start, 1, datasets=datasets)
    assert done.returncode == 0, done.stderr[-3000:]
    compressed = load_checkpoint(tmp_path / "out" / "start_norton-78.safetensors")
    assert compressed.spec == CompressionSpec.preset("norton-78") and compressed.num_classes == 10
    metrics = json.loads(results.read_text())["few"]
    rows = table(done.stdout)
    assert rows[0] == ["few"]
    for name, columns in COLUMNS[task].items():
        assert all(0 <= metrics[name][column] <= 100 for column in columns)
        assert [name, *(f"{metrics[name][column]:.2f}" for column in columns)] in rows
        assert ["task", *columns] in rows
    first = torch.load(last, weights_only=True)

    if task == "faster":  # go on, without repeating how far
        words = ["--resume", "--json", results, *common, *start, 2, "SOLVER.CHECKPOINT_PERIOD", 1]
        done = command("tools/train_net.py", *config, *words, datasets=datasets)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Starting training from iteration 1" in done.stdout
        metrics, second = json.loads(results.read_text())["few"], torch.load(last, weights_only=True)
        assert (first["iteration"], second["iteration"]) == (0, 1)
        frozen, trained = "backbone.bottom_up.layer1.0.conv1.weight", "backbone.bottom_up.layer4.0.conv3.weight"
        assert torch.equal(first["model"][frozen], second["model"][frozen])
        assert not torch.equal(first["model"][trained], second["model"][trained])

    again = tmp_path / "again.json"
    done = command(
        "tools/train_net.py", *config, "--eval-only", "--json", again, *common, "MODEL.WEIGHTS", last, datasets=datasets
    )
    assert done.returncode == 0, done.stderr[-3000:]
    evaluated = json.loads(again.read_text())["few"]
    for name, columns in COLUMNS[task].items():
        assert [evaluated[name][c] for c in columns] == pytest.approx([metrics[name][c] for c in columns])


def test_train_on_bccd(datasets, real_weights_path, tmp_path):
    """Three classes of one's own; a compressed classifier as the start."""
    pytest.importorskip("detectron2")
    state = {
        name: t.float() if t.is_floating_point() else t for name, t in open_weights(real_weights_path).state.items()
    }  # fmt: skip
    start = save_checkpoint(tmp_path / "small.safetensors", compress(state, CompressionSpec.parse(None, LIGHT)).model)
    few = subset(datasets / "bccd" / "annotations" / "val.json", tmp_path / "few.json", 3)
    words = ["--config", "norton_faster_rcnn.yaml", "--register", f"few={few}:{datasets / 'bccd' / 'val'}"]
    words += [*SMALL_RUN, "DATASETS.TRAIN", "('bccd_train',)", "DATASETS.TEST", "('few',)", "SOLVER.MAX_ITER", 2]
    words += ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.WEIGHTS", start, "OUTPUT_DIR", tmp_path / "out"]
    words += ["SOLVER.AMP.ENABLED", True]  # on a CPU too
    done = command("tools/train_net.py", *words, datasets=datasets)
    assert done.returncode == 0, done.stderr[-3000:]
    assert table(done.stdout)[1] == ["task", *BOXES] and "Platelets" in done.stdout
    assert open_weights(tmp_path / "out" / "model_final.pth").described.spec == CompressionSpec.parse(None, LIGHT)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ([], r"data set coco_2017_train: expected \S+coco\S+, found none; put COCO at \S+, set DETECTRON2_DATASETS"),
        (["--num-gpus", "2"], r"data set coco_2017_train: expected \S+coco\S+, found none"),
        (
            ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.WEIGHTS", "none.pth"],
            "none.pth: expected weights .*, found no such file",
        ),
        (
            ["--eval-only", "DATASETS.TEST", "()", "MODEL.WEIGHTS", ""],
            "MODEL.WEIGHTS: expected a trained detector, got",
        ),
    ],
    ids=["no data", "no data for two", "no weights", "nothing to evaluate"],
)
def test_train_net_refuses(tmp_path, monkeypatch, words, pattern):
    pytest.importorskip("detectron2")
    monkeypatch.chdir(tmp_path)
    done = command("tools/train_net.py", "--config", "norton_faster_rcnn.yaml", *words, datasets=tmp_path / "nowhere")
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.splitlines()[-1]
    assert re.search("^error: .*" + pattern, last), last
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.pth")) and not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--config", "none.yaml"], "none.yaml: expected a config file"),
        (["--config", "norton_faster_rcnn.yaml", "SOLVER.MAX_ITER"], "expected pairs of KEY VALUE, got 1"),
        (["--config", "norton_faster_rcnn.yaml", "--register", "mine"], "--register: expected NAME=JSON:IMAGES, got"),
        (["--config", "norton_faster_rcnn.yaml", "--register", "a=b.json:c"], "b.json: expected COCO annotations"),
        (["--config", "norton_faster_rcnn.yaml", "DATASETS.TRAIN", "('mine',)"], "data set 'mine': expected a regist"),
    ],
)
def test_train_net_checks_first(words, pattern):
    pytest.importorskip("detectron2")
    from norton_det.commands.options.train_net import make_parser
    from norton_det.commands.train_net import configure
    from norton_det.utils.errors import InputError

    with pytest.raises(InputError, match=pattern) as caught:
        configure(make_parser().parse_args(words))
    assert "\n" not in str(caught.value)


def test_results_as_json(tmp_path, capsys):
    pytest.importorskip("detectron2")
    from norton_det.commands.train_net import report

    report({"few": {"bbox": {"AP": float("nan"), "AR1": 3.0}}}, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == {"few": {"bbox": {"AP": None, "AR1": 3.0}}}
    assert "nan" in capsys.readouterr().out


def test_a_model_is_not_what_compress_takes(tmp_path, call):
    """torch.save(model) needs code to be run when it is read; it is refused by name."""
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    words = ("--weights", tmp_path / "model.pth", "--output", tmp_path / "x.safetensors", "--preset", "norton-78")
    status, _, err = call("tools/compress.py", *words)
    one_error(
        status, err, "expected tensors only, got a file that asks for torch.nn.modules.linear.Linear; nothing was"
    )


# --- calibration, evaluate, finetune, grad_cam, study ----------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """train/ and val/ of an ImageNet-style folder: 10 classes of 2 noisy pictures, 40 x 40."""
    import numpy as np
    from PIL import Image

    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part in ("train", "val"):
        for index in range(10):
            folder = root / part / f"class{index}"
            folder.mkdir(parents=True)
            for number in range(2):
                noise = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def calibrated(half, pictures, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A checkpoint that tools/compress.py calibrated, and what it printed; one of the pictures is damaged."""
    output = tmp_path_factory.mktemp("calibrated") / "small.safetensors"
    folder = output.parent / "images"
    shutil.copytree(pictures / "train", folder)
    (folder / "class3" / "1.png").write_bytes(b"cut off")
    words = ["--weights", half, "--rank", 1, "--ratios", "[0.]+[0.3]*3+[0.9]*16", "--calibrate", folder]
    done = command("tools/compress.py", *words, "--output", output, "--image-size", 32, "--resize", 36)
    return output, done


def test_compress_calibrates(calibrated):
    output, done = calibrated
    assert done.returncode == 0, done.stderr
    assert re.search(r"skipped, cannot be read: \S+class3/1\.png\n", done.stdout)
    assert re.search(r"images: 19 images, resize 36, crop 32\n", done.stdout)
    assert "criterion css; decompose" in done.stdout and "calibrate" in done.stdout
    assert all(bar in done.stderr for bar in ("decompose", "channels", "calibrate"))
    assert load_checkpoint(output).num_classes == 10


def test_evaluate(call, calibrated, half, pictures, tmp_path):
    words = ["--data", pictures / "val", "--image-size", 32, "--resize", 36, "--device", "cpu", "--quiet"]
    status, out, err = call("tools/evaluate.py", "--weights", calibrated[0], *words)
    assert (status, err) == (0, "") and re.search(r"Top-1 \d+\.\d\d %   Top-5 \d+\.\d\d %\n$", out)
    status, out, _ = call("tools/evaluate.py", "--weights", half, *words, "--json")
    found = json.loads(out)
    assert status == 0 and found["images"] == 20 and found["classes"] == 10 and 0 <= found["top1"] <= found["top5"]
    status, out, _ = call("tools/evaluate.py", "--weights", half, *words, "--fuse", "--json", tmp_path / "a.json")
    assert status == 0 and json.loads((tmp_path / "a.json").read_text())["top1"] == found["top1"]


@pytest.mark.parametrize(
    ("tool", "words", "pattern"),
    [
        ("compress", ["--preset", "norton-78", "--calibrate", "none"], "none: expected a folder of images, found none"),
        ("compress", ["--preset", "norton-78", "--calibrate", "empty"], "empty: expected images"),
        (
            "compress",
            ["--preset", "norton-78", "--calibrate", "bad"],
            "bad: expected images, got 1 that cannot be read",
        ),
        ("compress", ["--preset", "norton-78", "--criterion", "css"], "css needs calibration images"),
        ("compress", ["--preset", "norton-78", "--seed", "99999999999999999999"], "seed: expected 0 to 4294967295"),
        ("compress", ["--preset", "norton-78", "--json", "empty"], "empty: expected a file to write, got a folder"),
        ("evaluate", ["--data", "none"], "none: expected a folder with one folder per class"),
        ("evaluate", ["--data", "classes"], "classes: expected 10 class folders, .* got 1"),
        ("evaluate", ["--data", "classes", "--batch-size", "0"], "a batch size of 1 or more .*got --batch-size 0"),
        ("finetune", ["--data", "none"], "none/train: expected a folder with one folder per class"),
        ("finetune", ["--data", "none", "--epochs", "0"], "recipe: epochs: expected more than 0, got 0.0"),
        ("finetune", ["--data", "none", "--teacher", "none.pth"], "none.pth: expected weights"),
        ("compress", ["--neck-rank", "1"], "expected a detector of torchvision, got other weights"),
        ("compress", ["--neck-rank", "1", "--no-compensate"], "--no-compensate: expected a ResNet alone, got a whole"),
        ("compress", ["--neck-rank", "1", "--decomposition", "weight"], "--decomposition: expected a ResNet alone"),
        ("compress", ["--target-macs", "1G", "--preset", "norton-78"], "got --target-macs, --preset; drop all but one"),
        ("compress", ["--target-macs", "1G", "--target-params", "1M"], "got --target-macs, --target-params; drop all"),
        ("compress", ["--target-params", "few"], "target_params: expected a number such as 12.5M"),
        ("compress", ["--target-macs", "1G", "--input-size", "8", "8"], "--input-size: expected 32 pixels or more"),
        ("compress", ["--preset", "norton-78", "--device", "gpu"], "device: expected one of this machine, .*'gpu'"),
        ("evaluate", ["--data", "classes", "--device", "gpu"], "device: expected one of this machine"),
        ("finetune", ["--data", "classes", "--device", "gpu"], "device: expected one of this machine"),
        ("study", ["--data", "none", "--val-images", "0"], "--val-images: expected 1 or more, got 0"),
        ("study", ["--data", "none"], "none/val: expected a folder with one folder per class"),
        ("grad_cam", ["--calibrate", "none"], "none.png: expected an image, found no such file"),
    ],
)
def test_classifier_tools_refuse(call, half, tmp_path, monkeypatch, tool, words, pattern):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "bad", "classes/one"):
        Path(folder).mkdir(parents=True)
    Path("bad/a.png").write_bytes(b"x")
    extra = {
        "compress": ["--output", "out.safetensors", "--quiet"],
        "finetune": ["--output", "out"],
        "study": ["rank", "--output", "out"],
        "grad_cam": ["none.png", "--output", "out.png"],
    }
    before = sorted(tmp_path.rglob("*"))
    status, _, err = call(f"tools/{tool}.py", "--weights", half, *words, *extra.get(tool, []))
    one_error(status, err, pattern)
    assert sorted(tmp_path.rglob("*")) == before


def test_compress_whole_detectors(call, repository, tmp_path):
    """A torchvision detector's state dict, and a Detectron2 checkpoint with its config, to files that carry all."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    from norton_det.d2 import load_config
    from norton_det.d2.build import build_detector
    from norton_det.tv import fasterrcnn_norton_resnet50_fpn

    dense = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.save(dense.state_dict(), tmp_path / "tv.pth")
    config = repository / "configs" / "dense_faster_rcnn.yaml"
    torch.save({"model": build_detector(load_config(str(config))).state_dict()}, tmp_path / "d2.pth")
    ranks = ["--rank", "none", "--ratios", "[0.]+[0.5]*19", "--neck-rank", 1, "--box-head-rank", 16, "--quiet"]
    for name, more in (("tv", []), ("d2", ["--config", config])):
        target = tmp_path / f"{name}.safetensors"
        words = ["--weights", tmp_path / f"{name}.pth", "--output", target, *ranks, *more]
        status, out, err = call("tools/compress.py", *words, "--json", tmp_path / f"{name}.json")
        assert status == 0, err
        assert "detector: MACs 13" in out and "(whole detector)" in out
        assert sorted(open_weights(target).described.layout.values()) == [1] * 5 + [16] * 2
        assert len(json.loads((tmp_path / f"{name}.json").read_text())["layers"]) == 7
    small = fasterrcnn_norton_resnet50_fpn(weights=tmp_path / "tv.safetensors")
    assert small.norton_info.num_classes == 4
    words = ["--weights", tmp_path / "d2.pth", "--output", tmp_path / "x.safetensors", *ranks]
    status, _, err = call("tools/compress.py", *words)
    one_error(status, err, "expected a detector of torchvision, got other weights")


def test_compress_keeps_its_input(call, half, tmp_path):
    copy = tmp_path / "dense.safetensors"
    save_file({name: tensor.clone() for name, tensor in torch.load(half, weights_only=True).items()}, copy)
    content = copy.read_bytes()
    status, _, err = call("tools/compress.py", "--weights", copy, "--preset", "norton-78", "--output", copy)
    one_error(status, err, "--output: expected another file than --weights")
    assert copy.read_bytes() == content


def test_finetune_and_resume(call, calibrated, half, pictures, tmp_path):
    words = ["--weights", calibrated[0], "--teacher", half, "--data", pictures, "--output", tmp_path / "run"]
    words += ["--epochs", 1, "--batch-size", 10, "--image-size", 32, "--resize", 36, "--workers", 0, "--quiet"]
    words += ["--device", "cpu", "--learning-rate", 0.0001, "--train-size", 40]
    status, _, err = call("tools/finetune.py", *words, "--train-size", 0)
    one_error(status, err, "image size: expected 32 <= size <= resize, got 0")
    status, out, err = call("tools/finetune.py", *words)
    assert status == 0, err
    assert "best Top-1" in out and json.loads(out.splitlines()[0])["epoch"] == 1
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"best.safetensors", "curve.png", "last.pth", "metrics.json"}
    assert (tmp_path / "run" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    recipe = json.loads((tmp_path / "run" / "metrics.json").read_text())["recipe"]
    assert (recipe["distill"], recipe["features"], recipe["label_smoothing"]) == (0.9, 1.0, 0.1)
    status, _, err = call("tools/finetune.py", *words)
    one_error(status, err, "expected a new folder, got one with last.pth; add --resume")
    status, _, err = call("tools/finetune.py", *words, "--resume", "--label-smoothing", 0.2)
    one_error(status, err, "label_smoothing: expected 0.1 as in the run to resume, got 0.2")
    status, out, _ = call("tools/finetune.py", *words, "--resume")
    assert status == 0 and json.loads(out.splitlines()[0])["epoch"] == 1  # it was at its end


def test_grad_cam(call, half, calibrated, pictures, tmp_path):
    pytest.importorskip("pytorch_grad_cam")
    from PIL import Image

    picture = pictures / "val" / "class0" / "0.png"
    words = [picture, picture, "--weights", half, "--compressed", calibrated[0], "--image-size", 32, "--resize", 36]
    words += ["--folder", pictures / "val", "--count", 4, "--output", tmp_path / "cam.png", "--json"]
    status, out, err = call("tools/grad_cam.py", *words)
    assert status == 0, err
    found = json.loads(out)
    assert found["correlation_images"] == 4 and -1 <= found["correlation"]["small"] <= 1
    with Image.open(tmp_path / "cam.png") as sheet:
        assert sheet.size == (3 * 36, 2 * 36 + 22)


def test_study_resumes(call, half, pictures, tmp_path):
    """One study end to end on tiny pictures; what is in its table is not done again."""
    words = ["methods", "--weights", half, "--data", pictures, "--output", tmp_path, "--image-size", 32, "--resize", 36]
    header = 'rank,method,NMSE,"top1, BN re-estimated"\n'
    done = [f"{rank},{name},0.5,10.0" for rank in (1, 2, 3) for name in ("filter-wise CP", "layer-wise CP", "Tucker-2")]
    (tmp_path / "methods.csv").write_text(header + "\n".join(done) + "\n")
    status, out, err = call("tools/study.py", *words)
    assert status == 0, err
    rows = (tmp_path / "methods.csv").read_text().splitlines()
    assert len(rows) == 13 and rows[1:10] == done and rows[10].startswith("1,SVD,")
    assert (tmp_path / "methods.md").read_text() == out.removesuffix("\n") and "| SVD |" in out
    assert (tmp_path / "methods.png").read_bytes()[:4] == b"\x89PNG"


def test_compare(tmp_path):
    """Two detectors trained with two seeds, one of them loaded too; run again, nothing is trained again."""
    from norton_det.data import generate_dataset

    generate_dataset(tmp_path / "data" / "norton_shapes", train=4, val=2, height=96, width=128)
    output = tmp_path / "compare"
    keys = {"INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": 64, "SOLVER.MAX_ITER": 1, "SOLVER.IMS_PER_BATCH": 1}
    keys |= {"MODEL.RPN.POST_NMS_TOPK_TEST": 20, "MODEL.DEVICE": "cpu"}
    configs = [f"quick_schedules/{name}_faster_rcnn_instant_test.yaml" for name in ("dense", "norton")]
    words = [word for config in configs for word in ("--config", config)]
    words += ["--seeds", 1, "--size", 64, 64, "--output", output]
    opts = [word for pair in keys.items() for word in pair]
    done = command("tools/compare.py", *words, *opts, datasets=tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "| dense_faster_rcnn_instant_test | 1 |" in done.stdout and "mean ± standard deviation" in done.stdout
    last = output / "norton_faster_rcnn_instant_test_1" / "model_final.pth"
    changed = last.stat().st_mtime_ns
    done = command(
        "tools/compare.py", *words, "--load", f"again={last}", *opts, datasets=tmp_path / "data"
    )  # --load makes a row more
    assert done.returncode == 0 and last.stat().st_mtime_ns == changed, done.stderr
    with (output / "compare.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    names = ["again", *(f"{name}_faster_rcnn_instant_test" for name in ("norton", "dense"))]
    assert sorted(rows) == sorted(names)
    one, two, dense = (rows[name] for name in names)
    assert (one["AP"], one["macs"], one["minutes"]) == (two["AP"], two["macs"], "")
    assert int(two["macs"]) < int(dense["macs"]) and (output / "compare.png").stat().st_size > 3000
    done = command("tools/compare.py", *words, "--load", "none.pth", *opts, datasets=tmp_path / "data")
    one_error(done.returncode, done.stderr, "--load: expected NAME=FILE of another name than the configs, got 'none")
    done = command("tools/compare.py", *words, *opts, "SOLVER.WEIGHT_DECAY", 0.1, datasets=tmp_path / "data")
    one_error(done.returncode, done.stderr, "expected the settings of its run, got others; use --output")

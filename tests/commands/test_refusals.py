"""Bad input is one line and status 2, and nothing is written, whichever command it is given to."""

from pathlib import Path

import pytest

from .shared import one_error


@pytest.mark.parametrize(
    ("tool", "words", "pattern"),
    [
        ("export", ["--output", "x.xml"], "expected a detector; give --weights FILE, --config FILE, or both"),
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
        ("compress", ["--neck-rank", "1"], "expected a detector, got a ResNet alone"),
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

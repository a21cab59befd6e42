"""tools/benchmark.py: its table, and what is refused."""

import json
from pathlib import Path

import pytest

from .shared import QUICK_TEST, one_error


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
        (["--config", "norton_faster_rcnn.yaml", "--weights", "none.pth"], "none.pth: expected weights"),
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

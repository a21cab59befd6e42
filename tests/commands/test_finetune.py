"""tools/finetune.py: a run, its files, and how it goes on."""

import json

from .shared import one_error


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

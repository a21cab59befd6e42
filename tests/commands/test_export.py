"""tools/export.py and tools/evaluate_detector.py: the file, the same pictures, the same metrics."""

import json

import pytest

from .shared import QUICK_TEST, command


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

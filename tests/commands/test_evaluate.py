"""tools/evaluate.py: Top-1 and Top-5 of checkpoints."""

import json
import re


def test_evaluate(call, calibrated, half, pictures, tmp_path):
    words = ["--data", pictures / "val", "--image-size", 32, "--resize", 36, "--device", "cpu", "--quiet"]
    status, out, err = call("tools/evaluate.py", "--weights", calibrated[0], *words)
    assert (status, err) == (0, "") and re.search(r"Top-1 \d+\.\d\d %   Top-5 \d+\.\d\d %\n$", out)
    status, out, _ = call("tools/evaluate.py", "--weights", half, *words, "--json")
    found = json.loads(out)
    assert status == 0 and found["images"] == 20 and found["classes"] == 10 and 0 <= found["top1"] <= found["top5"]
    status, out, _ = call("tools/evaluate.py", "--weights", half, *words, "--fuse", "--json", tmp_path / "a.json")
    assert status == 0 and json.loads((tmp_path / "a.json").read_text())["top1"] == found["top1"]

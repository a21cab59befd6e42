"""tools/grad_cam.py: a sheet of two networks."""

import json

import pytest


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

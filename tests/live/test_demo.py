"""The demo as a user runs it: videos, pictures and streams in, drawn ones out; both detectors; what goes wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from norton_det.live import open_source
from tests import REPOSITORY

from .films import Server, number_of, picture, video

CONFIG = "quick_schedules/norton_{}_rcnn_instant_test.yaml"
SMALL = ("--min-size", 64, "--quiet")
OPTIONS = ("--opts", "MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "TEST.DETECTIONS_PER_IMAGE", 5)

pytest.importorskip("detectron2")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return video(tmp_path_factory.mktemp("film") / "film.mp4", frames=5)


@pytest.mark.parametrize("kind", ["faster", "mask", "keypoint"])
def test_every_frame_of_a_video_is_drawn(call, film, tmp_path, kind):
    output, times = tmp_path / "out.mp4", tmp_path / "times.json"
    words = ("--config", CONFIG.format(kind), "--video-input", film, "--output", output, "--json", times)
    status, out, err = call("tools/demo.py", *words, "--confidence-threshold", 0, *SMALL, *OPTIONS)
    assert (status, err) == (0, "")
    assert re.search(rf"^5 frames of {film} in {output}; the first after \d+\.\d s$", out, re.M)
    seen, drawn = list(open_source(str(film))), list(open_source(str(output)))
    assert len(drawn) == len(seen) == 5
    assert [number_of(frame.image) for frame in seen] == list(range(5))
    assert drawn[0].image.shape[1] == 128 and drawn[0].image.shape[0] > 96  # two lines above
    for before, after in zip(seen, drawn, strict=True):  # and something drawn upon each
        assert np.abs(after.image[-96:].astype(int) - before.image).max() > 100
    written = json.loads(times.read_text())
    (only,) = written["detectors"]
    assert written["frames"] == 5 and only["engine"] == "PyTorch" and only["params"] > 1e6
    assert 0 < only["model_ms"] < only["end_to_end_ms"]
    assert only["end_to_end_fps"] == pytest.approx(1000 / only["end_to_end_ms"])


def test_two_detectors_side_by_side(call, film, exported, tmp_path):
    output, times = tmp_path / "out.mkv", tmp_path / "times.json"
    words = ("--config", CONFIG.format("faster"), "--compare", exported, "--eager", "--output", output, "--json", times)
    status, out, err = call("tools/demo.py", "--video-input", film, *words, *SMALL, *OPTIONS)
    assert (status, err) == (0, "")
    first, second = json.loads(times.read_text())["detectors"]
    assert (first["name"], first["engine"]) == ("norton-78", "OpenVINO") and second["engine"] == "Detectron2 eager"
    drawn = list(open_source(str(output)))
    assert len(drawn) == 5 and drawn[0].image.shape[1] == 128 * 2 + 6
    assert first["name"] in out and "end to end" in out


def test_pictures(call, exported, tmp_path):
    import cv2

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), picture(number))
    (folder / "broken.png").write_bytes(b"not a picture")
    cv2.imwrite(str(folder / "thin.png"), np.zeros((1, 4000, 3), np.uint8))
    status, out, err = call(
        "tools/demo.py", "--weights", exported, "--input", folder, "--output", tmp_path / "out", "--quiet"
    )
    assert status == 0 and "3 frames of 5 pictures" in out
    told = r"[^\n]*broken\.png[^\n]*\nthin\.png: image: expected a short side that is left [^\n]*\n"
    assert re.fullmatch(told, err), err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_url_and_a_limit(call, film, exported):
    server = Server(film.parent)
    try:
        words = ("--weights", exported, "--video-input", f"{server.url}/film.mp4", "--output", "-", "--max-frames", 2)
        status, out, err = call("tools/demo.py", *words, "--quiet")
    finally:
        server.server.shutdown()
        server.server.server_close()
    assert (status, err) == (0, "") and out.startswith("2 frames of http://127.0.0.1")


def test_a_camera_that_goes_ends_with_status_3(call, exported, tmp_path, monkeypatch):
    from norton_det.live import camera as module

    monkeypatch.setattr(module.Camera.__init__, "__defaults__", ((0.01, 0.01), None))
    server = Server(tmp_path, frames=30)
    server.lives = 1
    try:
        words = ("--weights", exported, "--video-input", f"{server.url}/live", "--output", tmp_path / "out.mp4")
        status, out, err = call("tools/demo.py", *words, "--quiet")
    finally:
        server.server.shutdown()
        server.server.server_close()
    assert status == 3 and re.fullmatch(r"error: http://[^\n]*none after 2 attempts to open it again[^\n]*\n", err)
    assert len(list(open_source(str(tmp_path / "out.mp4")))) == int(out.split()[0]) > 0  # what was seen is kept


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_the_video_is_playable(exported, tmp_path, how):
    film, output = video(tmp_path / "long.mp4", frames=2000), tmp_path / "out.mp4"
    words = ["tools/demo.py", "--weights", exported, "--video-input", film, "--output", output]
    running = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    part = re.compile(r"\.out\.\d+\.part\.mp4")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        if any(part.fullmatch(path.name) and path.stat().st_size > 0 for path in tmp_path.iterdir()):
            break
        time.sleep(0.2)
    running.send_signal(how)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and err.splitlines()[-1] == "interrupted" and "Traceback" not in err
    frames = list(open_source(str(output)))
    assert len(frames) == int(out.split()[0]) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.mp4", "out.mp4"]


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (("--webcam", 77), "camera 77: expected a camera, found none"),
        (("--video-input", "nothing.mp4"), "nothing.mp4: expected a video, picture, folder, camera number or URL"),
        (("--video-input", "README.md"), "README.md: expected a video, got a file that does not open as one"),
        (("--input", "nothing/*.jpg"), "expected a picture, folder or pattern, found no such file"),
        (("--webcam", "--confidence-threshold", 2), "--confidence-threshold: expected 0 to 1, got 2.0"),
        (("--webcam", "--max-frames", 0), "--max-frames: expected 1 or more"),
        (("--webcam", "--min-size", -1), "--min-size: expected 0 or more pixels"),
        (("--webcam", "--output", "a.gif"), "expected a folder, or a name ending in"),
        (("--webcam", "--output", "README.md/a.mp4"), "README.md is a file"),
        (("--webcam", "--compare-eager"), "--compare-eager: expected a second detector"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_loaded(call, tmp_path, words, pattern):
    given = words if "--output" in words else (*words, "--output", tmp_path / "out.mp4")
    status, _, err = call("tools/demo.py", "--weights", tmp_path / "not_looked_at.xml", *given)
    assert status == 2 and re.fullmatch(r"error: [^\n]+\n", err) and re.search(pattern, err), err
    assert list(tmp_path.iterdir()) == []


def test_without_weights_the_detectors_of_make_demo_are_taken(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = call("tools/demo.py", "--input", "x.png", "--output", "out")
    assert status == 2 and "run: make demo" in err


def test_weights_that_do_not_fit(call, film, exported, tmp_path):
    status, _, err = call(
        "tools/demo.py", "--weights", exported, "--eager", "--video-input", film, "--output", tmp_path / "a.mp4"
    )
    assert status == 2 and re.fullmatch(r"error: [^\n]+\n", err) and "exported file" in err
    assert list(tmp_path.iterdir()) == []


def test_native_detectors_find_what_their_stack_finds():
    import torch
    from torchvision.models.detection import keypointrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

    from norton_det.deploy.native import NativePredictor

    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    for build, field in ((maskrcnn_resnet50_fpn, "masks"), (keypointrcnn_resnet50_fpn, "keypoints")):
        torch.manual_seed(0)
        made = build(weights=None, weights_backbone=None, box_score_thresh=0.0, box_detections_per_img=4).eval()
        found = NativePredictor(made, color="BGR", min_size=96, max_size=128)(np.ascontiguousarray(image[:, :, ::-1]))
        made.transform.min_size, made.transform.max_size = (96,), 128
        with torch.inference_mode():
            expected = made([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0]
        assert len(found) == 4 and np.array_equal(found.boxes, expected["boxes"].numpy())
        if field == "masks":
            assert np.array_equal(found.masks, expected["masks"][:, 0].numpy() >= 0.5)
        else:
            assert np.array_equal(found.keypoints[:, :, :2], expected["keypoints"][:, :, :2].numpy())
            assert np.array_equal(found.keypoints[:, :, 2], expected["keypoints_scores"].numpy())

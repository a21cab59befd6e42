"""Predictions and annotations as detections, and the tool that shows them side by side and plots results."""

import json
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from pycocotools import mask as mask_utils

from norton_det.d2.predictions import annotations_of, read_predictions
from norton_det.data import generate_dataset, register_coco_folder, register_generated
from norton_det.utils.errors import InputError

pytest.importorskip("supervision")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate_dataset(tmp_path_factory.mktemp("data") / "norton_shapes", train=1, val=3, height=96, width=128)


@pytest.fixture
def content(root):
    register_generated(root)
    return json.loads((root / "annotations" / "instances_val2017.json").read_text())


def as_predictions(content: dict, file) -> None:
    """The annotations, as a detector without faults would find them, the first of the file with the least score."""
    kept = [each for each in content["annotations"] if not each["iscrowd"]]
    results = []
    for index, each in enumerate(kept):
        runs = mask_utils.merge(mask_utils.frPyObjects(each["segmentation"], 96, 128))
        found = {key: each[key] for key in ("image_id", "category_id", "bbox")}
        segmentation = {"size": runs["size"], "counts": runs["counts"].decode()}
        results.append(found | {"score": 0.5 + index / 1000, "segmentation": segmentation})
    file.write_text(json.dumps(results))


def test_predictions_are_the_annotations_they_were_made_of(content, tmp_path):
    file = tmp_path / "found.json"
    as_predictions(content, file)
    found = read_predictions(file, "norton_shapes_val")
    for record in DatasetCatalog.get("norton_shapes_val"):
        truth, seen = annotations_of(record), found[record["image_id"]]
        order = np.argsort(seen.scores)  # falling in the file
        assert (np.diff(seen.scores) <= 0).all() and len(truth) == len(seen) > 0
        np.testing.assert_allclose(seen.boxes[order], truth.boxes)
        assert (seen.labels[order] == truth.labels).all() and (seen.masks[order] == truth.masks).all()
        assert truth.masks.shape == (len(truth), 96, 128) and (truth.scores == 1).all()


def test_keypoints(root, content, tmp_path):
    people = json.loads((root / "annotations" / "person_keypoints_val2017.json").read_text())
    kept = [each for each in people["annotations"] if not each["iscrowd"]]
    keys = ("image_id", "category_id", "bbox", "keypoints")
    file = tmp_path / "found.json"
    file.write_text(json.dumps([{key: each[key] for key in keys} | {"score": 0.9} for each in kept]))
    found = read_predictions(file, "norton_shapes_keypoints_val")
    assert sum(map(len, found.values())) == len(kept) > 0
    assert all(each.keypoints.shape == (len(each), 17, 3) and each.masks is None for each in found.values())


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("nothing", "text that does not parse"),
        ("{}", "got something else"),
        ('[{"image_id": 1}]', "got something else"),
        ('[{"image_id": 99, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]', "image_id 99 is not in"),
        ('[{"image_id": 500001, "category_id": 99, "bbox": [1, 2, 3, 4], "score": 1}]', "category_id 99 is not in"),
        ('[{"image_id": [1], "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]', r"image_id \[1\] is not in"),
        (
            '[{"image_id": 500001, "category_id": 1, "bbox": [1, 2], "score": 1}]',
            r"object 0 \(image 500001\): bbox: expected \[",
        ),
        (
            '[{"image_id": 500001, "category_id": 1, "bbox": [120, 20, 90, 9], "score": 1}]',
            r"object 0 \(image 500001\): bbox: expected a box within 128x96, got one outside; name the data set",
        ),
    ],
)
def test_other_files_are_one_line(content, tmp_path, text, pattern):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(InputError, match=pattern):
        read_predictions(tmp_path / "found.json", "norton_shapes_val")


RUNS = {"size": [96, 128], "counts": [96 * 128]}


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"score": math.nan}, r"score: expected a finite number, got nan; "),
        ({"score": "1"}, r"score: expected a finite number, got '1'; "),
        ({"bbox": [1, 2, math.inf, 4]}, r"bbox: expected \[x, y, width, height\], got \[1, 2, inf, 4\]; "),
        ({"bbox": [1, 2, -3, 4]}, r"bbox: expected a width and height of 0 or more"),
        ({"segmentation": [[0, 0, 9, 0, 9, 1e9]]}, r"segmentation: expected numbers of pixels, got 1000000000"),
        (
            {"segmentation": RUNS | {"size": [9**6, 9**6]}},
            r"segmentation: expected runs of the size \[96, 128\], got \[",
        ),
        (
            {"segmentation": RUNS | {"counts": "oooooo0"}},
            r"segmentation: expected counts of 0 or more that sum to .*12288",
        ),
        ({"keypoints": [1, 2, 0.5]}, r"keypoints: expected x, y, v of 0 keypoints"),
    ],
)
def test_values_that_would_mislead_or_crash_are_refused(content, tmp_path, changes, pattern):
    good = {"image_id": 500001, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1, "segmentation": RUNS}
    (tmp_path / "found.json").write_text(json.dumps([good, good | changes]))
    with pytest.raises(InputError, match=rf"^\S+found\.json: object 1 \(image 500001\): {pattern}"):
        read_predictions(tmp_path / "found.json", "norton_shapes_val")


def test_pictures_side_by_side(call, root, content, tmp_path):
    import cv2

    as_predictions(content, tmp_path / "found.json")
    register_coco_folder("mine", root / "annotations" / "instances_val2017.json", root / "val2017")
    words = ("--predictions", tmp_path / "found.json", "--dataset", "mine", "--output", tmp_path / "out", "--images", 2)
    status, out, err = call("tools/visualize_results.py", *words)
    assert (status, err) == (0, "") and "2 pictures of mine" in out
    first, second = sorted((tmp_path / "out").iterdir())
    for path in (first, second):
        image = cv2.imread(str(path))
        assert image.shape[1] == 2 * 128 + 6
        left, right = image[-96:, :128].astype(int), image[-96:, -128:].astype(int)
        plain = cv2.imread(str(root / "val2017" / path.name)).astype(int)
        assert np.abs(left - plain).max() > 60 and np.abs(right - plain).max() > 60  # both are drawn upon
        assert np.abs(left - right).mean() < 8  # alike, but for the scores


def test_plots_of_a_folder(call, tmp_path):
    about = {
        "name": "norton",
        "engine": "OpenVINO",
        "precision": "int8",
        "ms": 150.0,
        "macs": 25_000_000_000,
        "params": 7,
    }
    (tmp_path / "a.json").write_text(json.dumps({"bbox": {"AP": 53.4}, "detector": about}))
    (tmp_path / "compare.csv").write_text("name,seed,task,AP,macs\ndense,1,bbox,53.0,134e9\ndense,2,bbox,54.0,134e9\n")
    (tmp_path / "other.json").write_text("[1, 2]")
    status, out, err = call("tools/visualize_results.py", "--plot", tmp_path, "--output", tmp_path / "plots")
    assert status == 0 and err == f"passed over, no results of a detector: {tmp_path / 'other.json'}\n"
    assert "bbox_macs.png: 2 detectors" in out and "bbox_ms.png: 1 detectors" in out
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["bbox_macs.png", "bbox_ms.png"]
    for words, pattern in (
        (("--plot", tmp_path / "plots"), "expected results with AP and MACs or ms, found none"),
        (("--plot", tmp_path / "none"), "expected a folder of results, found none"),
        ((), "expected something to show"),
        (("--dataset", "mine"), "expected both or neither"),
    ):
        status, _, err = call("tools/visualize_results.py", *words, "--output", tmp_path / "more")
        assert status == 2 and pattern in err and err.count("\n") == 1
    assert not (tmp_path / "more").exists()

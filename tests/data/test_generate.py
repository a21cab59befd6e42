"""The generated data set: what pycocotools reads is what was drawn, and the folder is whole or not there."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from norton_det.data import generate_dataset
from norton_det.data.coco import KEYPOINT_NAMES, SKELETON, mask_to_box, mask_to_polygons, mask_to_runs
from norton_det.data.figures import SHAPES, draw_person, draw_shape
from norton_det.data.scene import CLASSES, render_scene
from norton_det.utils.errors import InputError
from tests import REPOSITORY

TOOL = REPOSITORY / "datasets" / "prepare_generated.py"
COUNTS = {"train2017": 60, "val2017": 25}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    target = tmp_path_factory.mktemp("data") / "shapes"
    return generate_dataset(target, train=COUNTS["train2017"], val=COUNTS["val2017"])


@pytest.fixture(scope="module")
def read(root):
    return {(kind, split): COCO(str(root / "annotations" / f"{kind}_{split}.json"))
            for kind in ("instances", "person_keypoints") for split in COUNTS}  # fmt: skip


def test_layout_is_that_of_coco(root, read):
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "norton_shapes.json", *COUNTS]
    ids = {}
    for split, count in COUNTS.items():
        instances, persons = read["instances", split], read["person_keypoints", split]
        assert instances.dataset["images"] == persons.dataset["images"]
        names = [image["file_name"] for image in instances.dataset["images"]]
        assert len(names) == count and sorted(path.name for path in (root / split).iterdir()) == sorted(names)
        for image in instances.dataset["images"][:5]:
            assert cv2.imread(str(root / split / image["file_name"])).shape == (image["height"], image["width"], 3)
        assert [category["name"] for category in instances.dataset["categories"]] == list(CLASSES)
        (person,) = persons.dataset["categories"]
        assert person["keypoints"] == list(KEYPOINT_NAMES) and len(person["skeleton"]) == len(SKELETON) == 19
        # One person, one id: the two files describe the same instances.
        for key, annotation in persons.anns.items():
            twin = instances.anns[key]
            assert {field: annotation[field] for field in twin} == twin and twin["category_id"] == 1
        assert len(persons.anns) == sum(a["category_id"] == 1 for a in instances.anns.values())
        ids[split] = set(instances.anns) | set(instances.imgs)
    assert not ids["train2017"] & ids["val2017"]


def test_every_class_crowds_and_small_objects_occur(read):
    annotations = list(read["instances", "train2017"].anns.values())
    assert {annotation["category_id"] for annotation in annotations} == {1, 2, 3, 4, 5}
    assert any(annotation["iscrowd"] for annotation in annotations)
    areas = np.array([annotation["area"] for annotation in annotations])
    assert (areas < 32**2).mean() > 0.2 and (areas > 32**2).mean() > 0.2
    per_image = [len(value) for value in read["instances", "train2017"].imgToAnns.values()]
    assert min(per_image) >= 2 and max(per_image) <= 6 and len(per_image) == COUNTS["train2017"]


@pytest.mark.parametrize("split", COUNTS)
def test_masks_areas_and_boxes_agree(read, split):
    coco = read["instances", split]
    for image_id, image in coco.imgs.items():
        total = np.zeros((image["height"], image["width"]), int)
        for annotation in coco.imgToAnns[image_id]:
            assert isinstance(annotation["segmentation"], dict if annotation["iscrowd"] else list)
            mask = coco.annToMask(annotation)
            assert mask.sum() == annotation["area"]
            assert annotation["bbox"] == mask_to_box(mask.astype(bool))
            total += mask
        assert total.max() == 1  # visible regions do not overlap


@pytest.mark.parametrize("split", COUNTS)
def test_keypoints_lie_on_the_person(read, split):
    coco = read["person_keypoints", split]
    seen = {0: 0, 1: 0, 2: 0}
    for annotation in coco.anns.values():
        points = np.array(annotation["keypoints"]).reshape(17, 3)
        assert annotation["num_keypoints"] == np.count_nonzero(points[:, 2])
        if annotation["iscrowd"]:
            assert not points.any()
            continue
        image = coco.imgs[annotation["image_id"]]
        mask = coco.annToMask(annotation)
        others = [other for other in coco.imgToAnns[image["id"]] if other is not annotation]
        for x, y, visibility in points:
            seen[int(visibility)] += 1
            assert 0 <= x < image["width"] and 0 <= y < image["height"]
            if visibility == 0:
                assert x == y == 0
            else:
                assert mask[y, x] == (visibility == 2)
                if visibility == 2:
                    assert not any(coco.annToMask(other)[y, x] for other in others)
    assert seen[2] > 10 * seen[1] > 0


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_ground_truth_as_predictions_is_perfect(read, kind, capsys):
    coco = read["person_keypoints" if kind == "keypoints" else "instances", "val2017"]
    truths = [a for a in coco.anns.values() if not a["iscrowd"] and (kind != "keypoints" or a["num_keypoints"])]

    def average_precision(shift: float) -> float:
        predictions = []
        for annotation in truths:
            prediction = {key: annotation[key] for key in ("image_id", "category_id")} | {"score": 0.9}
            if kind == "bbox":
                x, y, width, height = annotation["bbox"]
                prediction["bbox"] = [x + shift * width, y, width, height]
            elif kind == "segm":
                mask = np.roll(coco.annToMask(annotation), round(shift * annotation["bbox"][2]), axis=1)
                prediction["segmentation"] = mask_utils.encode(np.asfortranarray(mask))
            else:
                points = np.array(annotation["keypoints"], float).reshape(17, 3)
                points[:, 0] += shift * np.sqrt(annotation["area"])
                prediction["keypoints"] = points.ravel().tolist()
            predictions.append(prediction)
        evaluation = COCOeval(coco, coco.loadRes(predictions), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats[0]

    assert average_precision(0.0) == pytest.approx(1.0)
    assert average_precision(0.2) < 0.8


def test_pixels_inside_the_mask_are_the_figure(monkeypatch):
    """The same scene with black figures: what turned black is what the masks say."""
    from norton_det.data import scene

    def silhouette(draw):
        def drawn(*args):
            figure = draw(*args)
            return type(figure)(np.zeros_like(figure.color), figure.alpha, figure.keypoints)

        return drawn

    for seed in range(8):
        coloured, instances = render_scene(np.random.default_rng([5, seed]), 192, 256)
        with monkeypatch.context() as patch:
            patch.setattr(scene, "draw_person", silhouette(draw_person))
            patch.setattr(scene, "draw_shape", silhouette(draw_shape))
            black, again = render_scene(np.random.default_rng([5, seed]), 192, 256)
        union = np.any([instance.mask for instance in instances], axis=0)
        assert np.array_equal(union, np.any([instance.mask for instance in again], axis=0))
        inside = cv2.erode(union.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        # Sharp tips cover less than half a pixel over their last few pixels.
        outside = ~cv2.dilate(union.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
        assert (black[inside] < 40).mean() > 0.995 and coloured[inside].mean() > 60
        assert np.array_equal(black[outside], coloured[outside])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14), st.integers(1, 14), st.floats(0.1, 0.95))
def test_masks_survive_polygons_and_runs(seed, height, width, density):
    mask = np.random.default_rng(seed).uniform(size=(height, width)) < density
    polygons = mask_to_polygons(mask)
    if mask.any():
        assert mask_utils.area(mask_utils.frPyObjects(polygons, height, width)).sum() == mask.sum()  # no overlap
        merged = mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))
        assert np.array_equal(mask_utils.decode(merged), mask)
    else:
        assert polygons == []
    runs = mask_to_runs(mask)
    assert sum(runs["counts"]) == mask.size
    assert np.array_equal(mask_utils.decode(mask_utils.frPyObjects(runs, height, width)), mask)


def test_polygons_of_a_pixel_and_of_a_mask_with_a_hole():
    mask = np.zeros((9, 11), bool)
    mask[2, 3] = True
    (polygon,) = mask_to_polygons(mask)  # a quarter of a pixel inside the pixel's edges
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [(x, y) for x in (3.25, 3.75) for y in (2.25, 2.75)]
    mask[:] = True
    mask[3:6, 4:7] = False
    polygons = mask_utils.frPyObjects(mask_to_polygons(mask), 9, 11)
    assert len(polygons) == 2 and np.array_equal(mask_utils.decode(mask_utils.merge(polygons)), mask)


def test_person_faces_the_viewer_with_keypoints_on_its_body():
    for seed in range(60):
        figure = draw_person(np.random.default_rng(seed), 100)
        at = dict(zip(KEYPOINT_NAMES, figure.keypoints, strict=True))
        for name, (x, y) in at.items():
            assert figure.alpha[int(y), int(x)] == 1, name
        blue, green, red = figure.color[int(at["nose"][1]), int(at["nose"][0])]
        assert red > 150 and blue < 90 and green < 90  # the nose is red
        down = (at["left_hip"] + at["right_hip"] - at["left_shoulder"] - at["right_shoulder"]) / 2
        for part in ("eye", "ear", "shoulder", "hip", "elbow", "wrist", "knee"):
            across = at[f"left_{part}"] - at[f"right_{part}"]
            assert across[0] * down[1] - across[1] * down[0] > 0, part  # its left is on the right of the picture


@pytest.mark.parametrize(("name", "corners"), [("triangle", 3), ("square", 4), ("star", 10)])
def test_shapes_are_told_apart_by_their_outline(name, corners):
    for seed in range(20):
        figure = draw_shape(np.random.default_rng(seed), name, 90)
        contours, _ = cv2.findContours((figure.alpha >= 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, 1)
        assert len(contours) == 1
        assert len(cv2.approxPolyDP(contours[0], 0.03 * cv2.arcLength(contours[0], True), True)) == corners


def test_disc_is_an_ellipse():
    assert SHAPES[0] == "disc"
    for seed in range(20):
        mask = draw_shape(np.random.default_rng(seed), "disc", 90).alpha >= 0.5
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, 1)
        (_, axes, _) = cv2.fitEllipse(contours[0])
        assert mask.sum() == pytest.approx(np.pi / 4 * axes[0] * axes[1], rel=0.05)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_whatever_the_other_split(tmp_path):
    size = {"height": 96, "width": 128}
    first = files(generate_dataset(tmp_path / "a", train=6, val=3, **size))
    assert first == files(generate_dataset(tmp_path / "b", train=6, val=3, **size))
    longer = files(generate_dataset(tmp_path / "c", train=6, val=5, **size))
    assert {name: data for name, data in first.items() if "train" in name and "json" in name} == {
        name: data for name, data in longer.items() if "train2017.json" in name
    }
    assert all(longer[name] == data for name, data in first.items() if name.endswith(".jpg"))
    other = files(generate_dataset(tmp_path / "d", train=6, val=3, seed=1, **size))
    assert not any(other[name] == data for name, data in first.items() if name.endswith(".jpg"))
    splits = [data for name, data in first.items() if name.endswith(".jpg")]
    assert len(set(splits)) == 9  # the splits share no image


def test_complete_folder_is_reused_and_any_other_refused(tmp_path):
    root, arguments = tmp_path / "shapes", {"train": 2, "val": 1, "height": 96, "width": 96}
    root.mkdir()  # an empty folder may be filled
    calls: list[int] = []
    generate_dataset(root, **arguments, progress=calls.append)
    assert calls == [1, 1, 1]
    before = files(root)
    generate_dataset(root, **arguments, progress=calls.append)
    assert len(calls) == 3 and files(root) == before
    with pytest.raises(InputError, match=r"expected a data set with seed 7, got one with 0; delete it or name another"):
        generate_dataset(root, **arguments, seed=7)
    next((root / "val2017").iterdir()).unlink()
    with pytest.raises(InputError, match="files missing; delete it and run again"):
        generate_dataset(root, **arguments)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="got something else; name another"):
        generate_dataset(foreign, **arguments)
    assert (foreign / "mine.txt").read_text() == "keep"
    with pytest.raises(InputError, match="got something else"):
        generate_dataset(foreign / "mine.txt", **arguments)
    with pytest.raises(InputError, match="cannot write here"):
        generate_dataset(foreign / "mine.txt" / "below", **arguments)


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_a_crash_leaves_nothing(tmp_path, stop):
    drawn: list[int] = []

    def progress(images: int) -> None:
        drawn.append(images)
        if len(drawn) == 3:
            raise stop

    with pytest.raises(stop):
        generate_dataset(tmp_path / "shapes", train=3, val=3, height=96, width=96, progress=progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"), [("train", 0), ("val", -1), ("height", 64), ("width", 4000), ("seed", -1), ("train", 1.5)]
)
def test_arguments_out_of_range_are_refused(tmp_path, field, value):
    with pytest.raises(InputError, match=rf"^{field}: expected a whole number .*, got {value}; choose within it$"):
        generate_dataset(tmp_path / "shapes", **{field: value})
    assert list(tmp_path.iterdir()) == []


def test_tool_writes_reuses_and_refuses(tmp_path):
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(TOOL), str(tmp_path / "shapes"), "--height", "96", "--width", "96", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=TOOL.parent.parent)

    for reused in (False, True):
        done = call("--train", "2", "--val", "1", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {
            "root": str(tmp_path / "shapes"), "train": 2, "val": 1, "reused": reused,
        }  # fmt: skip
    refused = call("--train", "3", "--val", "1")
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in refused.stderr
    assert "examples:" in call("--help").stdout


def test_smallest_gives_an_easier_set_and_leaves_the_usual_one_alone() -> None:
    usual, easy = [], []
    for seed in range(12):
        usual += render_scene(np.random.default_rng([9, seed]), 128, 160)[1]
        easy += render_scene(np.random.default_rng([9, seed]), 128, 160, smallest=30)[1]
    assert min(instance.mask.any(0).sum() for instance in easy) > min(instance.mask.any(0).sum() for instance in usual)
    assert not any(instance.is_crowd for instance in easy) and any(instance.is_crowd for instance in usual)
    assert np.median([instance.mask.sum() for instance in easy]) > 1.5 * np.median([i.mask.sum() for i in usual])

"""Bad annotations: each is one line that names record and field; what is accepted is loaded and evaluated rightly."""

import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from norton_det.d2.build import load_config
from norton_det.d2.evaluation import evaluate_predictor
from norton_det.d2.loader import build_test_loader
from norton_det.data import check_datasets, register_coco_folder
from norton_det.data import coco as coco_module
from norton_det.data.coco import mask_to_runs, read_coco
from norton_det.data.coco_values import decode_counts
from norton_det.deploy import Detections
from tests.messages import refusal

HEIGHT, WIDTH = 20, 30
IMAGE = {"id": 4, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
BOX = {"id": 1, "image_id": 4, "category_id": 9, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}
NUT, TIPS = {"id": 9, "name": "nut"}, {"id": 9, "name": "nut", "keypoints": ["left_tip", "right_tip"]}
BOLT = {"id": 0, "name": "bolt"}
RUNS = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
POINTS = {"keypoints": [1, 2, 2, 3, 4, 0], "num_keypoints": 1}
TRIANGLE = [1, 1, 9, 1, 9, 9]


@pytest.fixture(autouse=True)
def catalogs():
    """Names that a test registers are gone after it."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)


def write(folder: Path, images=(IMAGE,), annotations=(BOX,), categories=(NUT,)) -> tuple[Path, Path]:
    """A COCO file and the folder of its one image."""
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / "a.png")
    file = folder / "all.json"
    content = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
    file.write_text(json.dumps(content))
    return file, folder


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"bbox": [0, 0, math.nan, 4]}, r"bbox: expected .*, got \[0, 0, nan, 4\]"),
        ({"bbox": [0, -math.inf, 3, 4]}, r"bbox: expected .*, got \[0, -inf, 3, 4\]"),
        ({"bbox": [0, 0, 10**400, 4]}, r"bbox: expected "),
        ({"bbox": [0, 0, 1e9, 4]}, r"bbox: expected .*, got \[0, 0, 1000000000\.0, 4\]"),
        ({"bbox": [0, 0, 5, -1]}, r"bbox: expected a width and height of 0 or more, got \[0, 0, 5, -1\]"),
        ({"bbox": ["0", 0, 5, 5]}, r"bbox: expected"),
        ({"bbox": [True, 0, 5, 5]}, r"bbox: expected"),
        ({"bbox": {"x": 1}}, r"bbox: expected"),
        ({"area": math.nan}, r"area: expected .*, got nan"),
        ({"area": -1}, r"area: expected .*, got -1"),
        ({"area": 1e11}, r"area: expected "),
        ({"area": None}, r"area: expected .*, got None"),
        ({"iscrowd": 2}, r"iscrowd: expected 0 or 1, got 2"),
        ({"iscrowd": [1]}, r"iscrowd: expected 0 or 1, got \[1\]"),
        ({"ignore": 1}, r"ignore: expected 0, got 1"),
        ({"image_id": 5}, r"image_id: 5 is not listed"),
        ({"image_id": 4.0}, r"image_id: expected 4, which is a number in the list, got 4\.0, a number with a point"),
        (
            {"image_id": "4"},
            r"image_id: expected 4, which is a number in the list, got '4', a text \(in quotes\); write",
        ),
        ({"category_id": "9"}, r"category_id: expected 9, which is a number in the list, got '9', a text"),
        ({"image_id": [4]}, r"image_id: \[4\] is not listed"),
        ({"category_id": 0}, r"category_id: 0 is not listed; add or drop it"),
        ({"category_id": {}}, r"category_id: \{\} is not listed"),
        ({"segmentation": [[1, 1, 9, 9]]}, r"segmentation: expected x, y of three points or more, got 4 numbers"),
        ({"segmentation": [[*TRIANGLE, 3]]}, r"segmentation: expected x, y of three points or more, got 7 numbers"),
        ({"segmentation": TRIANGLE}, r"segmentation: expected polygons or runs"),
        ({"segmentation": "mask"}, r"segmentation: expected polygons or runs, got 'mask'"),
        ({"segmentation": [[*TRIANGLE, 1, 1e9]]}, r"segmentation: expected numbers of pixels, got 1000000000\.0"),
        ({"segmentation": [[*TRIANGLE, 1, math.nan]]}, r"segmentation: expected numbers of pixels, got nan"),
        ({"segmentation": [[*TRIANGLE, 1, "2"]]}, r"segmentation: expected numbers of pixels, got '2'"),
        ({"segmentation": [[0, 0, 99999, 99999] * 50]}, r"segmentation: expected an outline of 4194304 pixels at most"),
        ({"segmentation": RUNS | {"size": [WIDTH, HEIGHT]}}, r"expected runs of the size \[20, 30\], got \[30, 20\]"),
        ({"segmentation": RUNS | {"size": [10**9, 10**9]}}, r"expected runs of the size \[20, 30\], got "),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, r"segmentation: expected counts .*, got None"),
        ({"segmentation": RUNS | {"counts": [599]}}, r"sum to the image's 600 pixels, got a sum of 599"),
        (
            {"segmentation": RUNS | {"counts": [-1, 601]}},
            r"segmentation: expected counts of 0 or more.* got some below 0",
        ),
        ({"segmentation": RUNS | {"counts": [600.0]}}, r"segmentation: expected counts .*, got \[600\.0\]"),
        ({"segmentation": RUNS | {"counts": "hB9"}}, r"segmentation: expected counts .* got "),
        ({"segmentation": RUNS | {"counts": "0o"}}, r"expected counts .* got '0o' \(not COCO's compressed counts\)"),
        ({"segmentation": RUNS | {"counts": "ooooooooo0"}}, r"a run longer than any image"),
        ({"segmentation": RUNS | {"counts": "ü"}}, r"segmentation: expected counts "),
        ({"segmentation": RUNS | {"counts": ""}}, r"segmentation: expected counts "),
        ({"keypoints": [1, 2, 2]}, r"keypoints: expected x, y, v of 2 keypoints, got \[1, 2, 2\]; give 6 numbers"),
        ({"keypoints": [1, 2, 2, 3, 4, 3]}, r"keypoints: expected visibilities 0, 1 or 2, got \[2, 3\]"),
        ({"keypoints": [1, math.nan, 2, 3, 4, 0]}, r"keypoints: expected x, y, v"),
        (POINTS | {"num_keypoints": 0}, r"num_keypoints: expected how many have a visibility above 0, got 0"),
        ({"keypoints": POINTS["keypoints"]}, r"num_keypoints: expected .*, got None"),
    ],
)
def test_annotations_that_would_crash_or_mislead(tmp_path, changes, pattern):
    file, folder = write(tmp_path, annotations=[BOX, BOX | {"id": 7} | changes], categories=[TIPS])
    assert re.search(
        rf"^\S+all\.json: annotation 7: .*{pattern}", message := refusal(lambda: read_coco(file, folder))
    ), message


@pytest.mark.parametrize(
    ("parts", "pattern"),
    [
        ({"images": []}, r"images: expected at least one, got none"),
        ({"annotations": []}, r"annotations: expected at least one that is no crowd, got none"),
        ({"annotations": [BOX | {"iscrowd": 1}]}, r"annotations: expected at least one that is no crowd"),
        ({"annotations": [7]}, r"annotations\[0\]: expected a JSON object, got 7"),
        ({"annotations": [BOX, BOX]}, r"annotations: expected ids that differ, got 1 twice"),
        ({"images": [IMAGE, IMAGE]}, r"images: expected ids that differ, got 4 twice"),
        ({"categories": [NUT, NUT]}, r"categories: expected ids that differ, got 9 twice"),
        ({"annotations": [BOX | {"id": [1]}]}, r"annotations\[0\]: id: expected whole numbers, got \[1\]"),
        ({"annotations": [BOX | {"id": "1"}]}, r"annotations\[0\]: id: expected whole numbers, got '1'"),
        ({"annotations": [BOX | {"id": True}]}, r"annotations\[0\]: id: expected whole numbers, got True"),
        ({"images": [IMAGE | {"id": {}}]}, r"images\[0\]: id: expected whole numbers, or names for all, got \{\}"),
        ({"images": [IMAGE, IMAGE | {"id": "b"}]}, r"images\[1\]: id: expected whole numbers, or names for all"),
        ({"images": [IMAGE | {"id": 2**63}]}, r"images\[0\]: id: expected whole numbers"),
        ({"categories": [{"id": "9", "name": "nut"}]}, r"categories\[0\]: id: expected whole numbers, got '9'"),
        ({"categories": [{"id": 1.5, "name": "nut"}]}, r"categories\[0\]: id: expected whole numbers, got 1\.5"),
        ({"categories": [NUT | {"name": ""}]}, r"category 9: name: expected a text, got ''"),
        ({"categories": [NUT | {"keypoints": 5}]}, r"category 9: keypoints: expected a list of names, got 5"),
        ({"categories": [TIPS | {"skeleton": 5}]}, r"category 9: skeleton: expected a list of pairs, got 5"),
        ({"images": [IMAGE | {"height": 0}]}, r"image 4: height: expected 1 to 65536 pixels, got 0"),
        ({"images": [IMAGE | {"width": True}]}, r"image 4: width: expected 1 to 65536 pixels, got True"),
        ({"images": [IMAGE | {"width": 30.0}]}, r"image 4: width: expected 1 to 65536 pixels, got 30\.0"),
        ({"images": [IMAGE | {"width": 65_537}]}, r"image 4: width: expected 1 to 65536 pixels, got 65537"),
        ({"images": [IMAGE | {"height": 65_536, "width": 65_536}]}, r"image 4: height x width: expected 178956970"),
        ({"images": [IMAGE | {"file_name": "../a.png"}]}, r"image 4: file_name: expected a path below the folder"),
        ({"images": [IMAGE | {"file_name": "b\\..\\a.png"}]}, r"image 4: file_name: expected a path below the folder"),
        ({"images": [IMAGE | {"file_name": "/etc/passwd"}]}, r"image 4: file_name: expected a path below the folder"),
        ({"images": [IMAGE | {"file_name": "C:\\a.png"}]}, r"image 4: file_name: expected a path below the folder"),
        ({"images": [IMAGE | {"file_name": "a\0.png"}]}, r"image 4: file_name: expected the name of a file"),
        ({"images": [IMAGE | {"file_name": ""}]}, r"image 4: file_name: expected the name of a file, got ''"),
        ({"images": [IMAGE | {"file_name": 5}]}, r"image 4: file_name: expected the name of a file, got 5"),
        ({"images": [IMAGE | {"file_name": "x" * 300}]}, r"expected 1 images of .*, 1 are missing, first x"),
    ],
)  # fmt: skip
def test_records_that_are_not_cocos(tmp_path, parts, pattern):
    file, folder = write(tmp_path, **parts)
    assert re.search(pattern, message := refusal(lambda: read_coco(file, folder))), message


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf{}", b'{"images": ' + b"9" * 5000 + b"}", b"[" * 100_000, b"\xff\xfe{}"]
)
def test_text_that_pycocotools_cannot_read(tmp_path, text):
    (tmp_path / "all.json").write_bytes(text)
    assert "text that does not parse" in refusal(lambda: read_coco(tmp_path / "all.json", tmp_path))


@given(
    mask=st.integers(1, 9).flatmap(lambda h: st.lists(st.booleans(), min_size=h, max_size=9 * h).map(lambda m: (h, m)))
)
def test_compressed_counts_are_those_of_pycocotools(mask):
    height, flags = mask
    pixels = np.array(flags[: len(flags) // height * height]).reshape(height, -1)
    text = mask_utils.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode()
    assert decode_counts(text).tolist() == mask_to_runs(pixels)["counts"]


def test_long_runs():
    edges = np.sort(np.random.default_rng(0).choice(4000 * 3000, 500, replace=False))
    pixels = np.zeros(4000 * 3000, np.uint8)
    for start, stop in edges.reshape(-1, 2):
        pixels[start:stop] = 1
    pixels = pixels.reshape(4000, 3000, order="F")
    text = mask_utils.encode(np.asfortranarray(pixels))["counts"].decode()
    assert decode_counts(text).tolist() == mask_to_runs(pixels)["counts"]


def found_again(name: str, folder: Path) -> float:
    """AP of a detector that finds each box of the annotations."""
    (record,) = DatasetCatalog.get(name)
    things = [thing for thing in record["annotations"] if thing["bbox"][2] > 0]
    boxes = np.array([thing["bbox"] for thing in things], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([thing["category_id"] for thing in things], np.int64)
    found = Detections(boxes, np.full(len(boxes), 0.9, np.float32), labels)
    read = lambda path: np.asarray(Image.open(path))  # noqa: E731
    return evaluate_predictor(lambda picture: found, name, read, output_dir=str(folder))["bbox"]["AP"]


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("annotations_from_0", {"annotations": [BOX | {"id": 0}, BOX | {"id": 1, "bbox": [20, 2, 5, 6]}]}),
        ("categories_from_0", {"categories": [BOLT, NUT], "annotations": [BOX, BOX | {"id": 2, "category_id": 0}]}),
        ("gaps", {"categories": [NUT, {"id": 90, "name": "bolt"}, {"id": -3, "name": "pin"}]}),
        ("names_of_images", {"images": [IMAGE | {"id": "a"}], "annotations": [BOX | {"image_id": "a"}]}),
    ],
)  # fmt: skip
def test_ids_that_are_accepted_are_evaluated_rightly(tmp_path, case, parts):
    register_coco_folder(f"checks_{case}", *write(tmp_path, **parts))
    assert found_again(f"checks_{case}", tmp_path / "out") == pytest.approx(100)


def test_training_leaves_out_boxes_without_area(tmp_path):
    flat = [BOX | {"id": 2, "bbox": [3, 3, 0, 5], "area": 0}, BOX | {"id": 3, "bbox": [3, 3, 5, 0], "area": 0}]
    register_coco_folder("checks_flat", *write(tmp_path, annotations=[*flat, BOX]))
    (record,) = get_detection_dataset_dicts("checks_flat")
    example = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")(record)
    assert len(record["annotations"]) == 3 and example["instances"].gt_boxes.tensor.tolist() == [[1, 2, 6, 8]]


def test_names_of_coco_are_checked_once(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    file, _ = write(tmp_path, annotations=[BOX | {"bbox": [0, 0, math.nan, 4]}])
    (tmp_path / "a.png").rename(tmp_path / "images" / "a.png")
    name = "coco_2017_checks"
    DatasetCatalog.register(name, list)
    kind = MetadataCatalog.get("coco_2017_val").evaluator_type
    MetadataCatalog.get(name).set(json_file=str(file), image_root=str(tmp_path / "images"), evaluator_type=kind)
    assert "annotation 1: bbox" in refusal(lambda: check_datasets(name))
    content = json.loads(file.read_text())
    content["annotations"][0] |= {"bbox": [1, 2, 5, 6], "segmentation": [TRIANGLE, [1, 1, 2, 2]]}
    file.write_text(json.dumps(content))
    check_datasets(name, masks=True)  # mended, and short polygons are let pass, as Detectron2 leaves them out
    reads = []
    monkeypatch.setattr(coco_module, "check_content", lambda *_, **__: reads.append(1))
    check_datasets(name)
    assert not reads


def test_masks_and_keypoints_are_asked_for_before_a_run(tmp_path):
    register_coco_folder(
        "checks_bare", *write(tmp_path, categories=[TIPS], annotations=[BOX | POINTS, BOX | {"id": 2}])
    )
    check_datasets("checks_bare")
    assert "annotation 1: segmentation: expected a mask" in refusal(lambda: check_datasets("checks_bare", masks=True))
    assert "annotation 2: keypoints: expected 2" in refusal(lambda: check_datasets("checks_bare", keypoints=2))
    (tmp_path / "b").mkdir()
    register_coco_folder("checks_tips", *write(tmp_path / "b", categories=[TIPS], annotations=[BOX | POINTS]))
    check_datasets("checks_tips", keypoints=2)
    assert "NUM_KEYPOINTS: expected 2" in refusal(lambda: check_datasets("checks_tips", keypoints=17))


def test_an_image_that_cannot_be_read_ends_an_evaluation(tmp_path):
    file, folder = write(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(folder / "a.png")
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:-900])
    register_coco_folder("checks_cut", file, folder)
    cfg = load_config("norton_faster_rcnn.yaml", ["DATALOADER.NUM_WORKERS", 0, "DATASETS.TEST", ("checks_cut",)])
    pattern = r"^\S+a\.png: expected the image of the annotations, got a damaged or other file \(.+\); replace it"
    assert re.search(pattern, message := refusal(lambda: list(build_test_loader(cfg, "checks_cut")))), message
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "a.png")
    assert re.search(pattern, message := refusal(lambda: list(build_test_loader(cfg, "checks_cut")))), message
    assert "expected 30 x 20 pixels, as annotated, got 9 x 9" in refusal(lambda: found_again("checks_cut", tmp_path))


@pytest.mark.parametrize(("score", "corner"), [(math.nan, 5), (0.9, math.nan), (0.9, math.inf)])
def test_predictions_that_are_not_finite_are_refused(tmp_path, score, corner):
    register_coco_folder("checks_nan", *write(tmp_path))
    boxes, scores = np.array([[1, 2, 6, corner]], np.float32), np.array([score], np.float32)
    found = Detections(boxes, scores, np.zeros(1, np.int64))
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    message = refusal(lambda: evaluate_predictor(lambda _: found, "checks_nan", lambda _: pixels))
    assert "a.png: expected finite predictions, got NaN or infinity" in message


def test_large_files_take_seconds(tmp_path):
    """20,000 objects of 100 numbers: COCO's largest file has 43 times as many, and may take 15 s on one core."""
    polygon = [float(number % 30) for number in range(100)]
    file, _ = write(tmp_path, annotations=[BOX | {"id": n, "segmentation": [polygon]} for n in range(1, 20_001)])
    content = json.loads(file.read_text())
    started = time.process_time()
    coco_module.check_content(file, content)
    assert time.process_time() - started < 3 * 15 / 43  # a busy machine is slower

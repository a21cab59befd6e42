"""Faults of data sets, images and predictions: each is one line before a run starts, or is loaded rightly."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetMapper, get_detection_dataset_dicts

from norton_det.d2.build import load_config
from norton_det.d2.evaluation import evaluate_predictor
from norton_det.d2.loader import build_test_loader
from norton_det.data import generate_dataset, register_coco_folder
from norton_det.data.decode import read_image
from norton_det.deploy import Detections

from .faults import Fault, tool

CONFIG = "quick_schedules/norton_faster_rcnn_instant_test.yaml"
MASKS = "quick_schedules/norton_mask_rcnn_instant_test.yaml"
KEYPOINTS = "quick_schedules/norton_keypoint_rcnn_instant_test.yaml"
Change = Callable[[dict[str, Any]], object]


def made(folder: Path, change: Change, kind: str = "instances") -> tuple[Path, Path]:
    """A few generated pictures whose annotations are changed: the JSON file and the folder of the pictures."""
    root = generate_dataset(folder / "shapes", train=3, val=2, height=96, width=128)
    file = root / "annotations" / f"{kind}_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file, root / "train2017"


def first(content: dict[str, Any]) -> dict[str, Any]:
    """The first annotation that is no crowd."""
    return next(annotation for annotation in content["annotations"] if not annotation["iscrowd"])


def trained(change: Change, config: str = CONFIG, *options: object) -> Callable[[Path], None]:
    """tools/train_net.py on annotations that are changed."""
    kind = "person_keypoints" if config == KEYPOINTS else "instances"

    def provoke(folder: Path) -> None:
        file, images = made(folder, change, kind)
        names = ("DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)", "OUTPUT_DIR", folder / "out")
        tool("tools/train_net.py", "--config", config, "--register", f"mine={file}:{images}", *names, *options)

    return provoke


def with_first(**fields: Any) -> Change:
    return lambda content: first(content).update(fields)


def loaded(change: Change, check: Callable[[list[dict[str, Any]], Path], str]) -> Callable[[Path], None]:
    """Registered and loaded as for training; prints what ``check`` finds."""

    def provoke(folder: Path) -> None:
        register_coco_folder("mine", *made(folder, change))
        print(check(get_detection_dataset_dicts("mine", filter_empty=False), folder))

    return provoke


def renumber(content: dict[str, Any], numbers: list[int]) -> None:
    """Other ids for the categories, in their order."""
    new = dict(zip((category["id"] for category in content["categories"]), numbers, strict=True))
    for category in content["categories"]:
        category["id"] = new[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]


def renumber_objects(content: dict[str, Any]) -> None:
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number


def flatten(content: dict[str, Any]) -> None:
    """Each first object of an image loses its width."""
    for image in content["images"]:
        found = next(each for each in content["annotations"] if each["image_id"] == image["id"])
        found.update(bbox=[*found["bbox"][:2], 0, found["bbox"][3]], area=0)


def ap(records: list[dict[str, Any]], folder: Path) -> str:
    """AP of predictions that are the annotations."""
    truths = iter(records)

    def predict(_: np.ndarray) -> Detections:
        things = [thing for thing in next(truths)["annotations"] if not thing["iscrowd"]]
        boxes = np.array([thing["bbox"] for thing in things], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([thing["category_id"] for thing in things], np.int64)
        return Detections(boxes, np.full(len(things), 0.9, np.float32), labels)

    results = evaluate_predictor(predict, "mine", _read, output_dir=str(folder / "out"))
    return f"AP of the annotations {results['bbox']['AP']:.1f}"


def trained_boxes(records: list[dict[str, Any]], _: Path) -> str:
    """What a training step gets."""
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    boxes = [mapper(record)["instances"].gt_boxes for record in records]
    assert all(bool(each.nonempty().all()) for each in boxes), "boxes without area in training"
    kept, listed = sum(map(len, boxes)), sum(len(record["annotations"]) for record in records)
    assert kept < listed
    return f"boxes with area alone: {kept} of {listed}"


def not_finite(folder: Path) -> None:
    """A detector whose boxes are NaN."""
    register_coco_folder("mine", *made(folder, lambda _: None))
    box = np.array([[1, 2, math.nan, 4]], np.float32)
    found = Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64))
    evaluate_predictor(lambda _: found, "mine", _read)


def predictions(**fields: Any) -> Callable[[Path], None]:
    """tools/visualize_results.py on a file of predictions."""

    def provoke(folder: Path) -> None:
        file, images = made(folder, lambda _: None)
        content = json.loads(file.read_text())
        found = {key: first(content)[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} | fields
        (folder / "found.json").write_text(json.dumps([found]))
        words = ("--predictions", folder / "found.json", "--dataset", "mine", "--register", f"mine={file}:{images}")
        tool("tools/visualize_results.py", *words, "--output", folder / "pictures")

    return provoke


def cut(folder: Path) -> None:
    """Half of a picture, registered under ``mine``."""
    file, images = made(folder, lambda _: None)
    picture = images / json.loads(file.read_text())["images"][1]["file_name"]
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    register_coco_folder("mine", file, images)


def cut_in_detectron2(folder: Path) -> None:
    """As ``tools/train_net.py --eval-only`` reads it."""
    cut(folder)
    for _ in build_test_loader(load_config(CONFIG, ["DATASETS.TEST", ("mine",)]), "mine"):
        pass


def cut_in_predictor(folder: Path) -> None:
    """As ``tools/evaluate_detector.py`` reads it."""
    cut(folder)
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    evaluate_predictor(lambda _: none, "mine", _read)


def _read(file: str) -> np.ndarray:
    return read_image(file)


def _empty(content: dict[str, Any]) -> None:
    content["annotations"] = []


def _twice(content: dict[str, Any]) -> None:
    content["annotations"].append(content["annotations"][0])


def _traversal(content: dict[str, Any]) -> None:
    content["images"][0]["file_name"] = "../../../etc/passwd"


def _huge_image(content: dict[str, Any]) -> None:
    content["images"][0].update(height=65_536, width=65_536)


_CASES: tuple[tuple[str, Callable[[Path], None], str, int], ...] = (
    ("a box that is NaN", trained(with_first(bbox=[1, 2, math.nan, 4])), r"annotation \d+: bbox: .*nan.*; give", 2),
    (
        "a box of negative width",
        trained(with_first(bbox=[9, 9, -4, 4])),
        r"annotation \d+: bbox: .* 0 or more.*; give",
        2,
    ),
    ("an area that is NaN", trained(with_first(area=math.nan)), r"annotation \d+: area: .*got nan; give", 2),
    ("boxes without area", loaded(flatten, trained_boxes), r"boxes with area alone: [1-9]", 0),
    ("a polygon of 1e9 pixels", trained(with_first(segmentation=[[0, 0, 9, 0, 9, 1e9]])), r"segmentation: .*; draw", 2),
    (
        "a polygon of two points",
        trained(with_first(segmentation=[[0, 0, 9, 0]])),
        r"segmentation: .*4 numbers; drop",
        2,
    ),
    (
        "runs of another size",
        trained(with_first(segmentation={"size": [9**9, 9**9], "counts": [9**18]})),
        r"segmentation: expected runs of the size \[96, 128\].*; make",
        2,
    ),
    (
        "runs that are damaged",
        trained(with_first(segmentation={"size": [96, 128], "counts": "oooooo"})),
        r"segmentation: expected counts .*; make",
        2,
    ),
    (
        "no mask for a Mask R-CNN",
        trained(with_first(segmentation=None), MASKS),
        r"segmentation: expected a mask.*; add",
        2,
    ),
    (
        "keypoints that are lost",
        trained(with_first(keypoints=[1, 2, 2]), KEYPOINTS),
        r"keypoints: .*17 keypoints.*; give",
        2,
    ),
    ("gaps between category ids", loaded(lambda it: renumber(it, [3, 7, 8, 40, 90]), ap), r"annotations 100\.0", 0),
    ("category ids from 0", loaded(lambda it: renumber(it, [0, 1, 2, 3, 4]), ap), r"annotations 100\.0", 0),
    ("annotation ids from 0", loaded(renumber_objects, ap), r"annotations 100\.0", 0),
    ("an unknown category", trained(with_first(category_id=77)), r"category_id: 77 is not listed; add", 2),
    ("an id that is a list", trained(with_first(id=[1])), r"id: expected whole numbers, got \[1\]; number", 2),
    ("an annotation twice", trained(_twice), r"annotations: expected ids that differ, got \d+ twice; number", 2),
    ("a path out of the folder", trained(_traversal), r"file_name: expected a path below the folder.*; leave", 2),
    ("an image of 4 gigapixels", trained(_huge_image), r"height x width: .*; cut", 2),
    ("no annotations", trained(_empty), r"annotations: expected at least one.*annotate some images", 2),
    (
        "another number of classes",
        trained(lambda _: None, CONFIG, "MODEL.ROI_HEADS.NUM_CLASSES", 80),
        r"MODEL\.ROI_HEADS\.NUM_CLASSES: expected 5, the classes of mine, got 80; set it to 5",
        2,
    ),
    ("detections that are NaN", not_finite, r"\.jpg: expected finite predictions, got NaN.*; use", 2),
    ("a results file with NaN", predictions(score=math.nan), r"object 0 .*: score: .*got nan; evaluate", 2),
    ("a results file of other images", predictions(image_id=999), r"image_id 999 is not in mine; name", 2),
    ("a results file of other classes", predictions(category_id=77), r"category_id 77 is not in mine; name", 2),
    (
        "a results file with a mask of 1e18 pixels",
        predictions(segmentation={"size": [10**9, 10**9], "counts": [10**18]}),
        r"object 0 .*: segmentation: expected runs of the size \[96, 128\].*; make",
        2,
    ),
    ("half an image in Detectron2's evaluation", cut_in_detectron2, r"\.jpg: expected the image .*; replace", 2),
    ("half an image in any evaluation", cut_in_predictor, r"\.jpg: expected an image, got a damaged.*; remove", 2),
)

FAULTS: list[Fault] = [Fault("data", *case) for case in _CASES]

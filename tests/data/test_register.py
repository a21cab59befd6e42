"""Registration with Detectron2: what its loader, mapper and evaluator make of the data, and refusals in one line."""

import json
import math
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances, polygons_to_bitmask
from pycocotools import mask as mask_utils

from norton_det.data import (
    check_datasets,
    generate_dataset,
    register_bccd,
    register_coco_folder,
    register_generated,
    resolve_coco_root,
)
from norton_det.data.coco import KEYPOINT_NAMES, read_coco
from norton_det.data.register import class_names
from norton_det.data.scene import CLASSES
from norton_det.data.voc import BCCD_CLASSES, BCCD_SPLITS, convert_voc
from norton_det.utils.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate_dataset(tmp_path_factory.mktemp("data") / "norton_shapes", train=14, val=14, seed=2)


@pytest.fixture(autouse=True)
def catalogs():
    """Detectron2's catalogues are global: each test starts without the names of this package and leaves none."""
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    for name in list(DatasetCatalog):
        if name.startswith(("norton_shapes", "bccd")):
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name, None)
    yield
    DatasetCatalog.data.clear()
    DatasetCatalog.data.update(before[0])
    MetadataCatalog.data.clear()
    MetadataCatalog.data.update(before[1])


@contextmanager
def one_line(pattern: str):
    """``pytest.raises`` for an InputError of one line that matches."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message and re.search(pattern, message), message


def test_generated_names_and_metadata(root):
    names = register_generated(root)
    assert set(names) <= set(DatasetCatalog)
    assert register_generated(root) == names  # again: nothing happens
    for name in names:
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "coco"
        keypoints = "keypoints" in name
        assert metadata.thing_classes == (["person"] if keypoints else list(CLASSES)) == list(class_names(name))
        assert hasattr(metadata, "keypoint_names") == keypoints
    ours, builtin = map(MetadataCatalog.get, ("norton_shapes_keypoints_val", "keypoints_coco_2017_val"))
    assert ours.keypoint_names == builtin.keypoint_names == KEYPOINT_NAMES
    assert ours.keypoint_flip_map == builtin.keypoint_flip_map
    assert len(ours.keypoint_connection_rules) == 19
    first, second, color = ours.keypoint_connection_rules[0]
    assert (first, second) == ("left_ankle", "left_knee") and len(color) == 3
    check_datasets(names)
    check_datasets("norton_shapes_val")


def test_loader_and_mapper_with_masks_keypoints_and_flip(root):
    register_generated(root)
    name = "norton_shapes_keypoints_train"
    dicts = get_detection_dataset_dicts([name], min_keypoints=1)
    assert 0 < len(dicts) <= 14
    indices = utils.create_keypoint_hflip_indices([name])
    assert [KEYPOINT_NAMES[index] for index in indices[:3]] == ["nose", "right_eye", "left_eye"]
    settings = {"is_train": True, "image_format": "RGB", "use_instance_mask": True, "use_keypoint": True}
    plain = DatasetMapper(**settings, augmentations=[], keypoint_hflip_indices=indices)
    flipped = DatasetMapper(**settings, augmentations=[T.RandomFlip(prob=1.0)], keypoint_hflip_indices=indices)
    left, right = KEYPOINT_NAMES.index("left_wrist"), KEYPOINT_NAMES.index("right_wrist")
    compared = 0
    for record in dicts:
        a, b = plain(record), flipped(record)
        width = record["width"]
        assert tuple(a["image"].shape) == (3, record["height"], width)
        assert torch.equal(a["image"].flip(2), b["image"])
        crowds = [annotation for annotation in record["annotations"] if annotation["iscrowd"]]
        assert len(a["instances"]) == len(record["annotations"]) - len(crowds)
        points, mirrored = a["instances"].gt_keypoints.tensor, b["instances"].gt_keypoints.tensor
        boxes = a["instances"].gt_boxes.tensor
        for instance in range(len(points)):
            seen = points[instance][points[instance, :, 2] == 2]
            # Loaded 0.5 to the right and below the pixel index: the centre of a pixel of the box.
            assert (seen[:, :2] % 1 == 0.5).all()
            assert (seen[:, :2] > boxes[instance, :2]).all() and (seen[:, :2] < boxes[instance, 2:]).all()
            if points[instance, left, 2] and points[instance, right, 2]:
                assert mirrored[instance, left, 0] == width - points[instance, right, 0]
                compared += 1
        kept = [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]
        for polygons, annotation in zip(a["instances"].gt_masks.polygons, kept, strict=True):
            bitmask = polygons_to_bitmask([np.asarray(polygon) for polygon in polygons], record["height"], width)
            x, y, w, h = annotation["bbox"]
            rows, columns = np.nonzero(bitmask)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x, y, x + w, y + h)
    assert compared > 5


@pytest.mark.parametrize(
    ("name", "tasks"),
    [("norton_shapes_val", ("bbox", "segm")), ("norton_shapes_keypoints_val", ("bbox", "segm", "keypoints"))],
)
def test_detectron2_evaluates_the_ground_truth_as_perfect(root, tmp_path, name, tasks):
    register_generated(root)
    dicts = get_detection_dataset_dicts([name], filter_empty=False)
    assert len(dicts) == 14

    def evaluate(shift: float) -> dict[str, float]:
        evaluator = COCOEvaluator(name, tasks, False, str(tmp_path), use_fast_impl=False, allow_cached_coco=False)
        evaluator.reset()
        for record in dicts:
            size = record["height"], record["width"]
            truths = [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]
            instances = Instances(size)
            boxes = torch.tensor([annotation["bbox"] for annotation in truths]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances.pred_boxes = Boxes(boxes + shift)
            instances.scores = torch.full((len(truths),), 0.9)
            instances.pred_classes = torch.tensor([annotation["category_id"] for annotation in truths], dtype=int)
            masks = [polygons_to_bitmask([np.array(p) for p in truth["segmentation"]], *size) for truth in truths]
            masks = [np.roll(mask, round(shift), axis=(0, 1)) for mask in masks]
            instances.pred_masks = torch.tensor(np.array(masks).reshape(-1, *size))
            if "keypoints" in tasks:
                points = torch.tensor([truth["keypoints"] for truth in truths]).reshape(-1, 17, 3).float()
                instances.pred_keypoints = points + torch.tensor([shift, shift, 0])
            evaluator.process([record], [{"instances": instances}])
        results = evaluator.evaluate()
        return {task: results[task]["AP"] for task in tasks}

    assert evaluate(0.0) == {task: pytest.approx(100.0) for task in tasks}
    assert all(value < 75 for value in evaluate(6.0).values())


def minimal(folder, **changes):
    """A COCO file with one image and one box, and what is named changed; ids with gaps and out of order."""
    import cv2

    (folder / "images").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((20, 30, 3), np.uint8))
    content = {
        "images": [{"id": 4, "file_name": "a.png", "height": 20, "width": 30}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 9, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}
        ],
        "categories": [{"id": 9, "name": "bolt"}, {"id": 3, "name": "nut"}],
    }  # fmt: skip
    file = folder / "all.json"
    file.write_text(json.dumps(content | changes))
    return file, folder / "images"


def test_own_folder_with_gaps_between_category_ids(tmp_path):
    file, images = minimal(tmp_path)
    register_coco_folder("parts_train", file, images)
    assert MetadataCatalog.get("parts_train").thing_classes == ["nut", "bolt"]
    (record,) = get_detection_dataset_dicts("parts_train")
    assert record["annotations"][0]["category_id"] == 1  # 9 is the second id
    register_coco_folder("parts_train", str(file), str(images))
    with one_line(r"^parts_train: expected a new name, it is registered with .*all\.json; choose another name$"):
        register_coco_folder("parts_train", file, tmp_path)
    with one_line(r"^coco_2017_val: expected a new name"):
        register_coco_folder("coco_2017_val", file, images)
    DatasetCatalog.remove("parts_train")
    other, _ = minimal(tmp_path, categories=[{"id": 9, "name": "screw"}])
    register_coco_folder("parts_train", other, images)
    assert MetadataCatalog.get("parts_train").thing_classes == ["screw"]


BOX = {"id": 1, "image_id": 4, "category_id": 9, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}
POINTS = {"keypoints": ["left_tip", "right_tip"], "skeleton": [[1, 2]]}


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"images": None}, r"all\.json: images: expected a list"),
        (
            {"images": [{"id": 4, "file_name": "a.png", "height": 20}]},
            r"images\[0\] \(id 4\): expected the field width",
        ),
        ({"images": [{"id": 4, "file_name": "b.png", "height": 2, "width": 3}]}, r"1 are missing, first b\.png"),
        ({"categories": []}, r"categories: expected at least one"),
        ({"categories": [{"id": 9, "name": "a"}, {"id": 9, "name": "b"}]}, r"categories: expected ids that differ"),
        ({"annotations": [BOX, BOX]}, r"annotations: expected ids that differ"),
        ({"annotations": [BOX | {"category_id": 5}]}, r"annotation 1: category_id: 5 is not listed"),
        ({"annotations": [BOX | {"image_id": 5}]}, r"annotation 1: image_id: 5 is not listed"),
        (
            {"annotations": [BOX | {"bbox": []}]},
            r"annotation 1: bbox: expected \[x, y, width, height\], got \[\]; give four numbers",
        ),
        (
            {"annotations": [BOX | {"bbox": [0, 0, math.nan, 4]}]},
            r"annotation 1: bbox: expected .*, got \[0, 0, nan, 4\]",
        ),
        ({"annotations": [{"id": 7}]}, r"annotations\[0\] \(id 7\): expected the field image_id"),
        (
            {"categories": [{"id": 9, "name": "a", "keypoints": ["tip", "tip"]}]},
            r"keypoints: expected names that differ, got 'tip' twice",
        ),
        (
            {"categories": [{"id": 9, "name": "a", **POINTS}, {"id": 8, "name": "b", "keypoints": ["tip"]}]},
            r"the same keypoints in every category",
        ),
        (
            {"categories": [{"id": 9, "name": "a", **POINTS, "skeleton": [[0, 1]]}]},
            r"skeleton\[0\]: expected two of 1 to 2, got \[0, 1\]",
        ),
    ],
)
def test_files_that_are_not_coco_are_refused(tmp_path, changes, pattern):
    file, images = minimal(tmp_path, **changes)
    with one_line(pattern):
        register_coco_folder("parts_bad", file, images)
    assert "parts_bad" not in DatasetCatalog


def test_missing_files_are_refused(tmp_path):
    file, images = minimal(tmp_path)
    with one_line(r"none\.json: expected COCO annotations \(JSON\), found no such file; check the path"):
        register_coco_folder("parts_bad", tmp_path / "none.json", images)
    with one_line(r"nowhere: expected the folder of the images of .*all\.json, found none; check the path"):
        register_coco_folder("parts_bad", file, tmp_path / "nowhere")
    file.write_text("{'not': json}")
    with one_line(r"all\.json: expected COCO annotations \(JSON\), got text that does not parse"):
        register_coco_folder("parts_bad", file, images)
    with one_line(r"expected a complete generated data set, found none; run: norton-det prepare generated"):
        register_generated(tmp_path)
    with one_line(r"train\.json: expected COCO annotations"):
        register_bccd(tmp_path)


def test_check_names_what_is_missing(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert resolve_coco_root() == tmp_path / "coco"
    with one_line(r"^data set 'coco_2017_vall': expected a registered name; did you mean .*coco_2017_val"):
        check_datasets(["coco_2017_vall"])
    with one_line(r"norton_shapes: expected a complete generated data set, found none; run: "):
        check_datasets(["norton_shapes_train"])
    (tmp_path / "norton_shapes").symlink_to(root)
    check_datasets(["norton_shapes_train"])  # registered on the way
    assert len(DatasetCatalog.get("norton_shapes_train")) == 14
    file, images = minimal(tmp_path)
    register_coco_folder("parts_train", file, images)
    file.unlink()
    with one_line(r"^data set parts_train: expected .*all\.json, found none; check the path"):
        check_datasets(("parts_train",))


def test_builtin_coco_is_looked_for_below_detectron2_datasets(tmp_path):
    program = (
        "import json, sys\n"
        "from norton_det.data import check_datasets\n"
        "from norton_det.utils.errors import InputError\n"
        "assert not {'detectron2', 'cv2', 'torchvision'} & set(sys.modules)\n"
        "try:\n    check_datasets(['keypoints_coco_2017_val'])\n"
        "except InputError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=120, env=os.environ | {"DETECTRON2_DATASETS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = tmp_path / "coco" / "annotations" / "person_keypoints_val2017.json"
    assert done.stdout.startswith(f"data set keypoints_coco_2017_val: expected {expected}, found none; put COCO at")
    assert len(done.stdout.splitlines()) == 1 and str(tmp_path / "coco") in done.stdout


def test_real_bccd(shared):
    names = register_bccd(shared / "data" / "bccd")
    check_datasets(names)
    assert [len(DatasetCatalog.get(name)) for name in names] == [205, 87, 72]
    assert MetadataCatalog.get("bccd_train").thing_classes == ["RBC", "WBC", "Platelets"]
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    example = mapper(get_detection_dataset_dicts("bccd_val")[0])
    assert tuple(example["image"].shape) == (3, 480, 640) and len(example["instances"]) > 0
    with one_line(r"^bccd_train: expected a new name"):
        register_coco_folder("bccd_train", shared / "data/bccd/annotations/val.json", shared / "data/bccd/val")


@pytest.mark.parametrize("kind", ["instances", "person_keypoints"])
def test_real_coco(shared, kind):
    coco = shared / "data" / "coco-mini"
    register_coco_folder("mini_val", coco / f"annotations/{kind}_val2017.json", coco / "val2017")
    ours = MetadataCatalog.get("mini_val")
    builtin = MetadataCatalog.get("coco_2017_val" if kind == "instances" else "keypoints_coco_2017_val")
    assert ours.thing_classes == builtin.thing_classes
    if kind == "instances":
        assert ours.thing_dataset_id_to_contiguous_id == builtin.thing_dataset_id_to_contiguous_id
        assert ours.get("keypoint_names") is None
    else:
        assert ours.keypoint_flip_map == builtin.keypoint_flip_map
    dicts = DatasetCatalog.get("mini_val")
    content = read_coco(coco / f"annotations/{kind}_val2017.json", coco / "val2017")
    assert len(dicts) == 79
    assert sum(len(record["annotations"]) for record in dicts) == len(content["annotations"])


def test_crowds_are_runs_that_pycocotools_reads(root):
    crowds = []
    for split in ("train2017", "val2017"):
        content = read_coco(root / "annotations" / f"instances_{split}.json", root / split)
        crowds += [annotation for annotation in content["annotations"] if annotation["iscrowd"]]
    assert crowds
    for crowd in crowds:
        runs = mask_utils.frPyObjects(crowd["segmentation"], *crowd["segmentation"]["size"])
        assert mask_utils.area(runs) == crowd["area"] and mask_utils.toBbox(runs).tolist() == crowd["bbox"]


def write_voc(folder: Path, content: dict, images: Path, split: str) -> None:
    """The Pascal VOC form of a COCO file: the inverse of what is tested."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = {category["id"]: category["name"] for category in content["categories"]}
    listed = []
    for image in content["images"]:
        stem = Path(image["file_name"]).stem
        listed.append(stem)
        (folder / "JPEGImages" / f"{stem}.jpg").write_bytes((images / image["file_name"]).read_bytes())
        objects = ""
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                box = f"<xmin>{x:g}</xmin><ymin>{y:g}</ymin><xmax>{x + w:g}</xmax><ymax>{y + h:g}</ymax>"
                objects += f"<object><name>{names[annotation['category_id']]}</name><bndbox>{box}</bndbox></object>"
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(listed))


def test_bccd_from_voc_equals_the_coco_form(shared, tmp_path):
    original = shared / "data" / "bccd"
    for split in ("train", "val", "test"):
        content = read_coco(original / "annotations" / f"{split}.json", original / split)
        kept = [image for image in content["images"] if image["id"] <= 6]
        write_voc(tmp_path / "voc", content | {"images": kept}, original / split, split)
    broken = tmp_path / "voc" / "Annotations" / f"{Path(kept[0]['file_name']).stem}.xml"
    text = broken.read_text()
    flat = "<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>3</xmax><ymax>9</ymax></bndbox>"
    broken.write_text(text.replace("</annotation>", f"<object><name>RBC</name>{flat}</object></annotation>"))

    def convert_bccd(name: str) -> Path:
        convert_voc(tmp_path / "voc", tmp_path / name, splits=BCCD_SPLITS, classes=BCCD_CLASSES)
        return tmp_path / name

    root = convert_bccd("bccd")
    check_datasets(register_bccd(root))
    for split in ("train", "val", "test"):
        expected = json.loads((original / "annotations" / f"{split}.json").read_text())
        got = json.loads((root / "annotations" / f"{split}.json").read_text())
        ids = {image["file_name"]: image["id"] for image in got["images"]}
        kept = [image for image in expected["images"] if image["file_name"] in ids]
        assert len(kept) == len(got["images"]) == 6 and got["categories"] == expected["categories"]
        for image in kept:
            mine, theirs = (
                [(a["category_id"], a["bbox"], a["area"]) for a in content["annotations"] if a["image_id"] == number]
                for content, number in ((got, ids[image["file_name"]]), (expected, image["id"]))
            )
            assert mine == theirs and len(mine) > 0

    with one_line(r"bccd: expected a new folder, got one with files"):
        convert_bccd("bccd")
    broken.write_text(text.replace("RBC", "cell"))
    with one_line(r"\.xml: expected one of RBC, WBC, Platelets, got 'cell'"):
        convert_bccd("again")
    broken.write_text("<annotation>")
    with one_line(r"\.xml: expected XML, got text that does not parse"):
        convert_bccd("again")
    broken.write_text(text)
    next((tmp_path / "voc" / "JPEGImages").iterdir()).unlink()
    with one_line(r"\.jpg: expected an image, found no such file"):
        convert_bccd("again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bccd", "voc"]


def test_voc_without_lists(tmp_path):
    """All images are one split, classes are found, pictures of any kind; difficult objects are crowds."""
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    (tmp_path / "voc" / "JPEGImages" / "b.PNG").write_bytes(b"picture")
    boxes = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>2</ymax></bndbox>"
    things = (
        f"<object><name>nut</name>{boxes}</object><object><name>bolt</name><difficult>1</difficult>{boxes}</object>"
    )
    text = f"<annotation><size><width>9</width><height>8</height></size>{things}</annotation>"
    (tmp_path / "voc" / "Annotations" / "b.xml").write_text(text)
    content = convert_voc(tmp_path / "voc", tmp_path / "coco", first_pixel=1)["all"]
    assert json.loads((tmp_path / "coco" / "annotations" / "all.json").read_text()) == content
    assert [category["name"] for category in content["categories"]] == ["bolt", "nut"]
    assert content["images"] == [{"id": 1, "file_name": "b.PNG", "width": 9, "height": 8}]
    kept = [(each["category_id"], each["bbox"], each["area"], each["iscrowd"]) for each in content["annotations"]]
    assert kept == [(2, [0, 1, 4, 1], 4, 0), (1, [0, 1, 4, 1], 4, 1)]
    assert (tmp_path / "coco" / "all" / "b.PNG").read_bytes() == b"picture"
    with one_line(r"none: expected a folder with Annotations and JPEGImages"):
        convert_voc(tmp_path / "none", tmp_path / "again")
    (tmp_path / "voc" / "Annotations" / "b.xml").write_text("<annotation></annotation>")
    with one_line(r"voc: expected objects in its annotations, got none"):
        convert_voc(tmp_path / "voc", tmp_path / "again")

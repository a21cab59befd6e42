"""A picture of 4000 x 1 pixels among others: it is named, and what is done with the others is done."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from norton_det.commands.grad_cam import look
from norton_det.d2.build import load_config, to_input
from norton_det.d2.evaluation import NortonCOCOEvaluator, evaluate_predictor
from norton_det.d2.loader import build_test_loader, build_train_loader
from norton_det.data import register_coco_folder
from norton_det.data.classes import ClassFolder
from norton_det.data.images import ImageSize, load_images, load_pictures, make_transform
from norton_det.deploy import Detections
from norton_det.models.input_size import ThinPicture
from norton_det.models.preprocessing import TORCHVISION
from norton_det.tv.adapter import to_input as to_torchvision_input
from norton_det.utils.errors import InputError

NAME = "with_a_thin_one"
BOX = [2, 0, 25, 1]  # in each of them
FOUND = Detections(np.float32([[2, 0, 27, 1]]), np.ones(1, np.float32), np.zeros(1, np.int64))


@pytest.fixture
def folder(tmp_path):
    """Two pictures of 64 x 48 and a thin one, registered with Detectron2."""
    (tmp_path / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nut"}]}
    for number, (width, height) in enumerate([(64, 48), (4000, 1), (64, 48)], start=1):
        Image.new("RGB", (width, height), (9 * number, 80, 120)).save(tmp_path / "images" / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": BOX, "area": 25, "iscrowd": 0}
        )
    (tmp_path / "all.json").write_text(json.dumps(content))
    register_coco_folder(NAME, tmp_path / "all.json", tmp_path / "images")
    yield tmp_path / "images"
    DatasetCatalog.pop(NAME)
    MetadataCatalog.pop(NAME)


def config():
    opts = ["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "DATALOADER.NUM_WORKERS", 0, "SEED", 0]
    return load_config("norton_faster_rcnn.yaml", [*opts, "SOLVER.IMS_PER_BATCH", 1, "MODEL.ROI_HEADS.NUM_CLASSES", 1])


def test_an_evaluation_counts_it_as_one_in_which_nothing_is_found(folder, tmp_path):
    told: list[str] = []
    take = to_input(config())

    def predict(picture: np.ndarray) -> Detections:
        take(picture)
        assert picture.shape[:2] != (1, 4000)
        return FOUND

    results = evaluate_predictor(predict, NAME, tell=told.append, output_dir=str(tmp_path))["bbox"]
    assert results["AR100"] == pytest.approx(200 / 3)  # two of three objects
    (line,) = [line for line in told if "thin" in line]
    assert line == f"{folder}/2.png: too thin: 4000x1, so that nothing is found in it, which counts"
    told.clear()
    evaluator = NortonCOCOEvaluator(NAME, output_dir=str(tmp_path))  # as train --eval-only does
    evaluator.tell = told.append
    evaluator.reset()
    for batch in build_test_loader(config(), NAME):
        size = batch[0]["height"], batch[0]["width"]

        evaluator.process(batch, [{"instances": FOUND.to_instances(*size)}])
    assert evaluator.evaluate()["bbox"] == pytest.approx(results, nan_ok=True) and told == [line]


def test_a_training_passes_it_over(folder):
    batches = iter(build_train_loader(config()))
    samples = [next(batches)[0] for _ in range(9)]
    assert {tuple(sample["image"].shape[1:]) for sample in samples} <= {(h, round(h * 4 / 3)) for h in range(640, 801)}
    unreadable = {pair for sample in samples for pair in sample.get("unreadable", ())}
    assert unreadable == {(str(folder / "2.png"), "too thin: 4000x1")}


@pytest.mark.parametrize("stack", ["Detectron2", "torchvision"])
def test_calibration_passes_it_over(folder, stack):
    transform = GeneralizedRCNNTransform(800, 1333, [0.0], [1.0])
    converts = {"Detectron2": to_input(config()), "torchvision": lambda image: to_torchvision_input(image, transform)}
    inputs, skipped = load_pictures(folder, converts[stack])
    assert len(inputs) == 2 and skipped == {folder / "2.png": "too thin: 4000x1"}


def test_classifiers_pass_it_over(folder, tmp_path, caplog):
    """Resized to a short side of 256 it would have a million columns."""
    shape = ImageSize(224, 256)
    images, skipped, _ = load_images(folder, TORCHVISION, size=224, resize=256)
    assert len(images) == 2 and skipped == {folder / "2.png": "too thin: 4000x1"}
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "one").symlink_to(folder)
    data = ClassFolder(tmp_path / "classes", 1, TORCHVISION, size=224, resize=256)
    assert [data[index][1] for index in range(3)] == [0, -1, 0]
    assert "skipped, too thin: 4000x1" in caplog.text
    with pytest.raises(InputError, match=r"2\.png: image: expected at most 128 times as long .*, got 4000x1; crop it"):
        look(folder / "2.png", make_transform(TORCHVISION, shape))
    with pytest.raises(ThinPicture):
        make_transform(TORCHVISION, shape)(np.zeros((4000, 1, 3), np.uint8))
    assert torch.isfinite(make_transform(TORCHVISION, shape)(np.zeros((100, 1, 3), np.uint8))).all()

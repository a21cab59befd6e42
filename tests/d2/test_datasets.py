"""Data sets that number classes otherwise train and evaluate as one; what cannot is refused before anything starts."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("detectron2")

from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from norton_det.commands.options.evaluate_detector import make_parser
from norton_det.d2.build import load_config
from norton_det.d2.datasets import check_config_datasets, known_labels, mapper_config, training_records
from norton_det.d2.evaluation import NortonCOCOEvaluator, evaluate_predictor
from norton_det.d2.loader import build_train_loader
from norton_det.d2.trainer import NortonTrainer
from norton_det.data import register_coco_folder
from norton_det.data.dataset_labels import training_labels
from norton_det.deploy import Detections
from norton_det.deploy.info import DeployInfo
from norton_det.models.labels import Labels, set_labels
from tests.messages import refusal

BOXES = {"cat": [2, 3, 20, 10], "dog": [30, 5, 12, 20], "cow": [5, 22, 18, 15]}
POINTS = ("left_ear", "right_ear", "nose")


@pytest.fixture
def register(tmp_path: Path):
    """Registers one picture with an object of each class, whose categories have these names and ids."""
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.png")

    def make(name: str, classes: dict[str, int], keypoints: tuple[str, ...] = (), **category: object) -> str:
        points = {"keypoints": [10, 10, 2] * len(keypoints), "num_keypoints": len(keypoints)} if keypoints else {}
        objects = [
            {"id": 5 + n, "image_id": 1, "category_id": classes[label], "bbox": BOXES[label.lower()], "iscrowd": 0}
            | {"area": BOXES[label.lower()][2] * BOXES[label.lower()][3]}
            | points
            for n, label in enumerate(classes)
        ]
        extra = {"keypoints": list(keypoints), **category} if keypoints else category
        content = {
            "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}],
            "annotations": objects,
            "categories": [{"id": number, "name": label, **extra} for label, number in classes.items()],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_folder(name, tmp_path / f"{name}.json", tmp_path)
        return name

    return make


def config(train: tuple[str, ...] = (), test: tuple[str, ...] = (), count: int = 3, *, points: int = 0, **keys):
    changes = {"DATASETS.TRAIN": train, "DATASETS.TEST": test, "MODEL.ROI_HEADS.NUM_CLASSES": count}
    if points:
        changes |= {"MODEL.KEYPOINT_ON": True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": points}
    changes |= {"DATALOADER.NUM_WORKERS": 0, "SOLVER.IMS_PER_BATCH": 1, "SEED": 1} | keys
    return load_config("dense_faster_rcnn.yaml", [word for pair in changes.items() for word in pair])


class Finder(nn.Module):
    """A detector of Detectron2's form that finds each object, numbered in its own order of classes."""

    def __init__(self, *classes: str) -> None:
        super().__init__()
        self.classes = classes
        self.device = torch.device("cpu")

    def forward(self, batch):
        (record,) = batch
        boxes = torch.tensor([BOXES[name] for name in self.classes if name in BOXES]).float()
        boxes[:, 2:] += boxes[:, :2]
        numbers = torch.tensor([number for number, name in enumerate(self.classes) if name in BOXES])
        found = Instances((record["height"], record["width"]))
        found.pred_boxes, found.scores, found.pred_classes = Boxes(boxes), torch.full((len(boxes),), 0.9), numbers
        return [{"instances": found}]


@pytest.mark.parametrize(
    ("tested", "ap"),
    [
        ({"cat": 1, "dog": 2, "cow": 3}, {"cat": 100, "dog": 100, "cow": 100}),
        ({"cow": 1, "cat": 2, "dog": 9}, {"cat": 100, "dog": 100, "cow": 100}),  # another order, other ids
        ({"Cow": 4, "DOG": 7}, {"Cow": 100, "DOG": 100}),  # fewer, in another spelling
    ],
)
def test_a_test_set_may_number_classes_otherwise(register, tmp_path, tested, ap, caplog):
    train = register("mine_train", {"cat": 1, "dog": 2, "cow": 3})
    test = register("mine_test", tested)
    cfg = config((train,), (test,), OUTPUT_DIR=str(tmp_path))
    check_config_datasets(cfg)
    results = NortonTrainer.test(cfg, Finder("cat", "dog", "cow"))["bbox"]
    assert {name: results[f"AP-{name}"] for name in ap} == pytest.approx(ap)
    told = [record.message for record in caplog.records if "has no class" in record.message]
    assert len(told) == 2 * (len(tested) < 3)  # before anything starts, and beside the figures


def test_what_a_model_is_known_for_comes_before_the_training_sets_of_its_config(register):
    train, test = register("mine_train", {"cat": 1, "dog": 2, "cow": 3}), register("mine_test", {"cat": 1, "dog": 2})
    cfg, model = config((train,), (test,)), Finder()
    assert known_labels(cfg, model) == Labels(("cat", "dog", "cow"), (1, 2, 3))
    assert known_labels(config((train,), (test,), 2), model) == Labels()  # other heads than the training set's
    set_labels(model, Labels(("dog", "cat", "cow")))
    assert known_labels(cfg, model).classes == ("dog", "cat", "cow")


@pytest.mark.parametrize(("stack", "first", "output"), [("torchvision", 1, 13), ("detectron2", 0, 12)])
def test_label_13_of_a_detector_that_numbers_by_id_is_category_13(register, tmp_path, stack, first, output):
    """A detector of 90 outputs without names, a data set of ids up to 90 with gaps."""
    test = register("mine_test", {"cat": 1, "dog": 13, "cow": 90})
    info = DeployInfo(stack, ("boxes", "scores", "labels"), "RGB", 40, 50, num_classes=90)
    x, y, width, height = BOXES["dog"]
    found = Detections(
        np.array([[x, y, x + width, y + height]], np.float32), np.ones(1, np.float32), np.array([output])
    )
    told: list[str] = []
    results = evaluate_predictor(lambda _: found, test, info=info, tell=told.append, output_dir=str(tmp_path))
    assert info.first_label == first and results["bbox"]["AP-dog"] == pytest.approx(100)
    (line,) = told
    assert "its 90 outputs are taken as category ids 1 on" in line
    (prediction,) = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert prediction["category_id"] == 13


def test_a_predictor_says_itself_what_its_labels_are(register):
    class Predictor:
        info = DeployInfo(
            "torchvision",
            ("boxes", "scores", "labels"),
            "RGB",
            40,
            50,
            ("background", "cow", "pig", "cat"),
            num_classes=3,
        )

        def __call__(self, picture: np.ndarray) -> Detections:
            boxes = np.array([BOXES["cow"], BOXES["dog"], BOXES["cat"]], np.float32)
            boxes[:, 2:] += boxes[:, :2]
            return Detections(boxes, np.full(3, 0.9, np.float32), np.array([1, 2, 3]))

    told: list[str] = []
    test = register("mine_test", {"cat": 1, "dog": 2, "cow": 3})
    results = evaluate_predictor(Predictor(), test, tell=told.append)["bbox"]
    assert [results[f"AP-{name}"] for name in ("cat", "dog", "cow")] == pytest.approx([100, 0, 100])
    assert len(told) == 2 and "dog" in told[0] and "1 of the detector's 3" in told[1]
    other = register("mine_other", {"dog": 1})
    assert "none of which it knows" in refusal(lambda: evaluate_predictor(Predictor(), other))


def test_training_sets_that_number_classes_otherwise_are_trained_as_the_first(register):
    first, second = register("mine_a", {"cat": 1, "dog": 2, "cow": 3}), register("mine_b", {"Cow": 1, "cat": 5})
    records = training_records(config((first, second)))
    numbers = [[annotation["category_id"] for annotation in record["annotations"]] for record in records]
    assert numbers == [[0, 1, 2], [2, 0]]
    batch = next(iter(build_train_loader(config((second, first), count=3, **{"INPUT.RANDOM_FLIP": "none"}))))
    assert set(batch[0]["instances"].gt_classes.tolist()) <= {0, 1, 2}


def test_training_sets_of_other_classes_are_met_in_their_union_or_refused(register):
    first, second = register("mine_a", {"cat": 1, "dog": 2}), register("mine_b", {"dog": 1, "cow": 2})
    assert training_labels((first, second)) == Labels(("cat", "dog", "cow"), (1, 2, None))  # 2 is the dog already
    check_config_datasets(config((first, second), (first,)))
    numbers = [
        [item["category_id"] for item in record["annotations"]] for record in training_records(config((first, second)))
    ]
    assert numbers == [[0, 1], [1, 2]]
    message = refusal(lambda: check_config_datasets(config((first, second), count=2)))
    assert re.search(r"expected the classes of mine_a \(cat, dog\) in mine_b too, got 'cow'; .*NUM_CLASSES 3", message)
    message = refusal(lambda: check_config_datasets(config((first, second), count=80)))
    assert "expected 3, the classes of mine_a and mine_b, got 80" in message


def test_sets_that_detectron2_registers_itself_are_met_by_name_too(register):
    from detectron2.data.datasets import register_coco_instances

    first = register("mine_a", {"cat": 1, "dog": 2, "cow": 3})
    metadata = MetadataCatalog.get(register("mine_b", {"cow": 1, "cat": 5}))
    register_coco_instances("theirs", {}, metadata.json_file, metadata.image_root)
    check_config_datasets(config((first, "theirs"), ("theirs",)))
    numbers = [
        [item["category_id"] for item in record["annotations"]]
        for record in training_records(config((first, "theirs")))
    ]
    assert numbers == [[0, 1, 2], [2, 0]]


def test_a_test_set_that_was_forgotten_is_one_line(register):
    train = register("mine_train", {"cat": 1, "cow": 2})
    other = register("mine_other", {"dog": 1})
    message = refusal(lambda: check_config_datasets(config((train,), (other,), 2)))
    assert message.startswith("DATASETS.TEST: expected classes of mine_train (cat, cow), got mine_other (dog); set")
    check_config_datasets(config((train,), (), 2))
    check_config_datasets(config((train,), (other,), 1), training=False)


def test_keypoints_of_sets_that_go_together_are_the_same(register):
    first = register("mine_a", {"cat": 1}, POINTS, sigmas=[0.1, 0.1, 0.1])
    second = register("mine_b", {"cat": 1}, ("Ear-L", "Ear-R", "Nose"), sigmas=[0.1, 0.1, 0.1])
    turned = register("mine_c", {"cat": 1}, ("right_ear", "left_ear", "nose"))
    check_config_datasets(config((first,), (second,), 1, points=3))
    pattern = r"mine_c: expected the keypoints of mine_a in their order: 'left_ear' as keypoint 1, got 'right_ear'; "
    for train, test in (((first, turned), ()), ((first,), (turned,))):
        cfg = config(train, test, 1, points=3, **{"TEST.KEYPOINT_OKS_SIGMAS": (0.1, 0.1, 0.1)})
        assert re.search(pattern, refusal(lambda cfg=cfg: check_config_datasets(cfg)))
    loader = build_train_loader(config((first, second), (), 1, points=3))  # in another spelling
    assert len(loader.dataset) == 2 and next(iter(loader))[0]["instances"].gt_keypoints.tensor.shape == (1, 3, 3)


def test_sigmas_are_those_asked_for_or_of_the_data_or_refused_before_anything_starts(register, tmp_path):
    bare, told = register("mine_a", {"cat": 1}, POINTS), register("mine_b", {"cat": 1}, POINTS, sigmas=[0.1, 0.2, 0.3])
    for given in ((), (0.1,) * 17):
        cfg = config((bare,), (bare,), 1, points=3, **{"TEST.KEYPOINT_OKS_SIGMAS": given})
        message = refusal(lambda cfg=cfg: check_config_datasets(cfg))
        assert re.search(r"^TEST.KEYPOINT_OKS_SIGMAS: expected 3 numbers .* keypoint of mine_a, got (none|17)", message)
        value = re.search(r'"(\(.*?\))"', message)[1]
        check_config_datasets(config((bare,), (bare,), 1, points=3, **{"TEST.KEYPOINT_OKS_SIGMAS": value}))
    cfg = config((bare,), (told,), 1, points=3, OUTPUT_DIR=str(tmp_path))
    check_config_datasets(cfg)
    assert NortonTrainer.build_evaluator(cfg, told)._kpt_oks_sigmas == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(("asked", "used"), [((), [0.05] * 3), ((0.2,), [0.2] * 3), ((0.1, 0.2, 0.3), [0.1, 0.2, 0.3])])
def test_a_predictor_of_other_keypoints_is_evaluated_without_a_config(register, monkeypatch, asked, used):
    name, seen, told = register("mine_a", {"cat": 1}, POINTS), [], []
    monkeypatch.setattr(NortonCOCOEvaluator, "evaluate", lambda self: seen.append(self._kpt_oks_sigmas))
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    evaluate_predictor(lambda _: nothing, name, oks_sigmas=asked, tell=told.append)
    assert seen == [used] and len(told) == (not asked)


def test_the_flag_for_sigmas_takes_what_the_refusal_says(register):
    name = register("mine_a", {"cat": 1}, POINTS)
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    message = refusal(lambda: evaluate_predictor(lambda _: nothing, name, oks_sigmas=(0.1, 0.1)))
    assert message.startswith("--oks-sigmas: expected 3 numbers")
    words = ["--weights", "a", "--dataset", name, "--oks-sigmas", re.search(r'"(\(.*?\))"', message)[1]]
    assert make_parser().parse_args(words).oks_sigmas == (0.05,) * 3
    with pytest.raises(SystemExit):
        make_parser().parse_args([*words[:-1], "0.1,-1"])


def test_pictures_are_not_mirrored_where_a_keypoint_has_no_other_side(register, caplog):
    paired, lonely = register("mine_a", {"cat": 1}, POINTS), register("mine_b", {"cat": 1}, ("L_Ear", "nose"))
    assert mapper_config(config((paired,), (), 1, points=3)).INPUT.RANDOM_FLIP == "horizontal"
    with caplog.at_level(logging.WARNING):
        build_train_loader(config((lonely,), (), 1, points=2))
    (line,) = [record.getMessage() for record in caplog.records if "mirrored" in record.getMessage()]
    assert "mine_b" in line and "by name L_Ear have a side" in line
    assert mapper_config(config((lonely,), (), 1, points=2)).INPUT.RANDOM_FLIP == "none"
    assert mapper_config(config((lonely,), (), 1)).INPUT.RANDOM_FLIP == "horizontal"  # boxes alone


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ([{}, {}], {"segm", "keypoints"}),
        ([{"segmentation": []}, {"segmentation": [[0, 0, 9, 0, 9, 9]]}], {"segm", "keypoints"}),
        ([{"segmentation": [[0, 0, 9, 0, 9, 9]]}] * 2, {"keypoints"}),
        ([{}, {"keypoints": [9, 9, 2], "num_keypoints": 1}], {"segm"}),
    ],
)
def test_what_annotations_do_not_suffice_for_is_left_out(annotations, expected, tmp_path):
    """Masks that some lack, keypoints that none has; an object of a class without keypoints counts neither way."""
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 32, "height": 32}],
        "categories": [{"id": 1, "name": "cat"} | ({} if "keypoints" in expected else {"keypoints": ["head"]})],
        "annotations": [box | {"id": number} | fields for number, fields in enumerate(annotations, start=1)],
    }
    (tmp_path / "ann.json").write_text(json.dumps(content))
    Image.new("RGB", (32, 32)).save(tmp_path / "1.jpg")
    register_coco_folder("lacking", tmp_path / "ann.json", tmp_path)
    evaluator = NortonCOCOEvaluator("lacking")
    assert evaluator.unmeasured == expected
    assert {len(annotation.get("keypoints", ())) for annotation in evaluator._coco_api.anns.values()} == (
        {0} if "keypoints" in expected else {3}
    )
    everything = [{"segmentation": {}, "keypoints": []}]
    assert {*evaluator._tasks_from_predictions(everything)} == {"bbox", "segm", "keypoints"} - expected

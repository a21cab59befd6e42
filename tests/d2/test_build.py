"""Training, evaluation and resuming for real, on a few generated pictures."""

import json
import math
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from pycocotools.coco import COCO

from norton_det.checkpoint.load import load_checkpoint
from norton_det.checkpoint.opened import open_weights
from norton_det.d2 import NortonTrainer, load_detector
from norton_det.d2.evaluation import NortonCOCOEvaluator, class_rows, format_classes, format_rows, published_columns
from norton_det.d2.initial_weights import compress_weights, resume_weights
from norton_det.data import generate_dataset, register_generated
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

from ..recount import evaluated, percentages, recount

QUICK = {
    "INPUT.MIN_SIZE_TRAIN": (96,),
    "INPUT.MIN_SIZE_TEST": 96,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.STEPS": (),
    "DATALOADER.NUM_WORKERS": 0,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "SEED": 1,
}
BOX_COLUMNS = ["AP", "AP50", "AP75", "AR1", "AR10", "AR100"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "norton_shapes"
    return generate_dataset(folder, train=8, val=3, height=96, width=128, seed=3)


def quick(config, kind: str, **keys):
    return config(f"quick_schedules/norton_{kind}_rcnn_instant_test.yaml", **QUICK | keys)


def test_train_evaluate_resume(config, root, tmp_path, dense_file):
    register_generated(root)
    keys = {
        "OUTPUT_DIR": tmp_path / "run",
        "MODEL.WEIGHTS": dense_file,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "SOLVER.CHECKPOINT_PERIOD": 1,
    }
    cfg = quick(config, "faster", **keys, **{"SOLVER.MAX_ITER": 2})
    trainer = NortonTrainer(compress_weights(cfg))
    trainer.resume_or_load(resume=False)
    start = load_checkpoint(tmp_path / "run" / "start_norton-78.safetensors")
    trained = trainer.model.backbone.bottom_up
    assert torch.equal(trained.conv1.weight, start.conv1.weight)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert {"backbone.bottom_up.conv1.weight", "backbone.bottom_up.layer4.2.conv2.vertical.weight"} <= changed
    assert {"backbone.fpn_lateral2.weight", "proposal_generator.rpn_head.conv.weight"} <= changed

    results = trainer.last_results()
    assert results["bbox"].keys() >= {*BOX_COLUMNS, "APs", "AP-person"}
    last = tmp_path / "run" / "model_final.pth"
    assert open_weights(last).described.spec == CompressionSpec.preset("norton-78")
    files = {"model_0000000.pth", "model_0000001.pth", "model_final.pth", "metrics.json", "last_checkpoint"}
    assert files <= {path.name for path in last.parent.iterdir()}

    # the same numbers from the file, and AP and AR are pycocotools' own
    again = NortonTrainer.test(cfg, load_detector(config_with(cfg, last)))
    assert again["bbox"] == pytest.approx(results["bbox"], nan_ok=True)
    predictions = tmp_path / "run" / "inference" / "coco_instances_results.json"
    expected = recount(root / "annotations" / "instances_val2017.json", predictions, "bbox")
    assert {name: again["bbox"][name] for name in BOX_COLUMNS} == pytest.approx(expected)

    # resuming: the next iteration, the network of the last checkpoint whatever the config's preset says
    further = quick(config, "faster", **keys, **{"SOLVER.MAX_ITER": 3, "MODEL.NORTON.PRESET": "norton-43"})
    resumed = NortonTrainer(resume_weights(further))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    assert resumed.model.backbone.bottom_up.spec.name == "norton-78"
    assert torch.equal(resumed.model.backbone.fpn_lateral2.weight, trainer.model.backbone.fpn_lateral2.weight)
    assert len(resumed.optimizer.state) == len(trainer.optimizer.state) > 0  # momentum goes on
    resumed.train()
    assert (tmp_path / "run" / "model_0000002.pth").is_file()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    assert any(line["iteration"] == 2 for line in lines)


def config_with(cfg, weights):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights)
    return cfg


@pytest.mark.parametrize(("kind", "loss"), [("mask", "loss_mask"), ("keypoint", "loss_keypoint")])
def test_one_step_reaches_every_parameter(config, root, tmp_path, kind, loss):
    register_generated(root)
    cfg = quick(config, kind, OUTPUT_DIR=tmp_path, **{"MODEL.BACKBONE.FREEZE_AT": 1})
    torch.manual_seed(0)
    trainer = NortonTrainer(cfg)
    with EventStorage():
        losses = trainer.model(next(iter(trainer.data_loader)))
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", loss}
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    for name, parameter in trainer.model.named_parameters():
        if name.startswith(("backbone.bottom_up.conv1", "backbone.bottom_up.bn1")):
            assert not parameter.requires_grad and parameter.grad is None, name
        else:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    for name in ("conv1", "conv2.pointwise", "conv2.vertical", "conv2.horizontal", "conv3"):
        assert trainer.model.backbone.bottom_up.layer1[0].get_submodule(name).weight.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("kind", "names", "columns"),
    [
        ("mask", "norton_shapes_val", {"bbox": BOX_COLUMNS, "segm": BOX_COLUMNS}),
        (
            "keypoint",
            "norton_shapes_keypoints_val",
            {"bbox": BOX_COLUMNS, "keypoints": ["AP", "AP50", "AP75", "AR", "AR50", "AR75"]},
        ),
    ],
)
def test_evaluation_of_masks_and_keypoints(config, root, tmp_path, kind, names, columns):
    """Untrained networks find nothing, but in every column; the truth itself scores 100 in data/test_register.py."""
    register_generated(root)
    cfg = quick(config, kind, OUTPUT_DIR=tmp_path, **{"TEST.DETECTIONS_PER_IMAGE": 2})
    results = NortonTrainer.test(cfg, build_model(cfg).eval())
    rows = published_columns(results)
    assert {row["task"]: list(row)[1:] for row in rows} == columns
    kinds = "person_keypoints" if kind == "keypoint" else "instances"
    for row in rows:
        predictions = tmp_path / "inference" / "coco_instances_results.json"
        expected = recount(root / "annotations" / f"{kinds}_val2017.json", predictions, row["task"])
        assert {name: row[name] for name in columns[row["task"]]} == pytest.approx(expected)
    assert len(format_rows(rows).splitlines()) == (3 if kind == "mask" else 4)


@pytest.mark.parametrize(
    ("layer", "part"), [("backbone.fpn_output3", "rpn_head"), ("roi_heads.box_head.fc2", "roi_heads.box_predictor")]
)
def test_predictions_that_are_not_finite_are_refused(config, root, tmp_path, layer, part):
    """Detectron2 drops them, and the rest scores as if nothing had happened."""
    register_generated(root)
    cfg = quick(config, "faster", OUTPUT_DIR=tmp_path)
    model = build_model(cfg).eval()
    model.get_submodule(layer).bias.data[3] = torch.nan
    with pytest.raises(InputError, match=rf"{part}: expected finite predictions, got NaN or infinity"):
        NortonTrainer.test(cfg, model)
    model.get_submodule(layer).bias.data[3] = 0.0
    results = NortonTrainer.test(cfg, model)
    classes = class_rows(results)
    assert [row["class"] for row in classes] == ["person", "disc", "square", "triangle", "star"]
    assert format_classes(classes).splitlines()[0].split() == ["bbox", "person", f"{results['bbox']['AP-person']:.2f}"]


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_average_recall_is_that_of_pycocotools(root, tmp_path, task):
    """Detections that are right for some objects, shifted for others: all of COCOeval's numbers in their places."""
    register_generated(root)
    kind = "person_keypoints" if task == "keypoints" else "instances"
    name = "norton_shapes_keypoints_val" if task == "keypoints" else "norton_shapes_val"
    truth = COCO(root / "annotations" / f"{kind}_val2017.json")
    detections, first = [], truth.getAnnIds(iscrowd=False)[0]
    for number, annotation in enumerate(truth.loadAnns(truth.getAnnIds(iscrowd=False))):
        shift = 3 * (number % 4)
        x, y, width, height = annotation["bbox"]
        found = {name: annotation[name] for name in ("image_id", "category_id")}
        found |= {"score": 1 / (1 + number), "bbox": [x + shift, y, width, height]}
        if task == "segm":
            found["segmentation"] = truth.annToRLE(annotation if number % 2 else truth.anns[first])
        if task == "keypoints":
            points = np.array(annotation["keypoints"], float).reshape(-1, 3) + [shift, 0, 0]
            found["keypoints"] = points.flatten().tolist()
        detections.append(found)
    evaluation = evaluated(truth, detections, task)
    evaluator = NortonCOCOEvaluator(name, output_dir=str(tmp_path), tasks=(task,))
    results = evaluator._derive_coco_results(evaluation, task, ["a"] if task == "keypoints" else None)
    (row,) = published_columns({task: results})
    assert row.pop("task") == task
    assert row == pytest.approx(percentages(evaluation, task))
    assert len(set(row.values())) >= 4 and 0 < row["AP"] < 100  # a mistaken column would show


def test_no_detections_at_all(root, tmp_path):
    register_generated(root)
    evaluator = NortonCOCOEvaluator("norton_shapes_val", output_dir=str(tmp_path))
    results = evaluator._derive_coco_results(None, "bbox", None)
    assert all(results[name] == 0 for name in BOX_COLUMNS)
    evaluator._coco_api.anns.clear()
    results = evaluator._derive_coco_results(None, "bbox", None)
    assert all(math.isnan(results[name]) for name in BOX_COLUMNS)  # nothing to find: no AP, rather than 0


def test_rows_as_text():
    box = {name: 10.0 + place for place, name in enumerate(BOX_COLUMNS)}
    results = {"bbox": box, "segm": box | {"AP": 9.0}, "keypoints": {"AP": 65.0, "AR": 71.25}, "panoptic": {"PQ": 1.0}}
    rows = published_columns(results)
    assert [row["task"] for row in rows] == ["bbox", "segm", "keypoints"]
    text = format_rows(rows).splitlines()
    assert text[0].split() == ["task", *BOX_COLUMNS]
    assert text[1].split() == ["bbox", "10.00", "11.00", "12.00", "13.00", "14.00", "15.00"]
    assert text[2].split()[:2] == ["segm", "9.00"]
    assert text[3].split() == ["task", "AP", "AP50", "AP75", "AR", "AR50", "AR75"]
    assert text[4].split() == ["keypoints", "65.00", "nan", "nan", "71.25", "nan", "nan"]
    assert len({len(line) for line in text}) == 1
    assert format_rows([]) == ""


def test_bfloat16_on_a_cpu_while_training_alone():
    from norton_det.d2.trainer import train_in_bfloat16

    layer, contexts, hooked = torch.nn.Linear(4, 2), ExitStack(), []
    layer.register_forward_hook(lambda *_: hooked.append(torch.is_autocast_enabled("cpu")))
    train_in_bfloat16(layer, contexts)
    assert layer(torch.ones(1, 4)).dtype == torch.bfloat16 and not torch.is_autocast_enabled("cpu")
    assert layer.eval()(torch.ones(1, 4)).dtype == torch.float32
    assert hooked == [True, False]
    with pytest.raises(RuntimeError):
        layer.train()(torch.ones(1, 5))
    assert not torch.is_autocast_enabled("cpu")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    cut_off = layer.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        layer(torch.ones(1, 4))
    cut_off.remove()
    contexts.close()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["box_pooler", "mask_pooler"])
def test_regions_are_pooled_as_by_detectron2(config, name):
    cfg = config("norton_mask_rcnn_instant_test.yaml", **{"MODEL.DEVICE": "cpu"})
    ours, theirs = (getattr(build(cfg).roi_heads, name) for build in (NortonTrainer.build_model, build_model))
    assert not any(type(module) is ROIAlign for module in ours.modules())
    drawn = torch.Generator().manual_seed(0)
    boxes = []
    for _ in range(2):
        corner = 100 * torch.rand(30, 2, generator=drawn)
        boxes.append(Boxes(torch.cat([corner, corner + 2 + 900 * torch.rand(30, 2, generator=drawn)], 1)))
    maps = [torch.randn(2, 8, 64 >> level, 64 >> level, generator=drawn) for level in range(4)]
    found = []
    for pooler in (ours, theirs):
        given = [map_.clone().requires_grad_() for map_ in maps]
        pooled = pooler(given, boxes)
        pooled.square().sum().backward()
        found.append([pooled.detach(), *(map_.grad for map_ in given)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
        assert other.abs().max() > 0.1

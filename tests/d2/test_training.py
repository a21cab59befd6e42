"""Training that goes on where it stopped and is the same in several processes; averaged weights; distillation."""

import itertools
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.utils.events import EventStorage
from pycocotools import mask as mask_utils

from norton_det.checkpoint.save import save_detector
from norton_det.d2 import NortonTrainer, load_config, load_detector
from norton_det.d2.build import build_detector, load_as_it_is, with_weights
from norton_det.d2.config import find_config
from norton_det.d2.distill import Distillation, DistillWeights, class_divergence, objectness_divergence
from norton_det.d2.initial_weights import compress_weights
from norton_det.d2.loader import BatchStream, SeededImages, build_train_loader, seeded
from norton_det.d2.trainer import distillation_of, scale_learning_rate
from norton_det.data import generate_dataset, register_coco_folder, register_generated
from norton_det.utils.errors import InputError

QUICK = {
    "INPUT.MIN_SIZE_TRAIN": (64, 96),
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.STEPS": (),
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TEST": (),
    "MODEL.RESNETS.NORM": "BN",
    "SEED": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Nine pictures, three of them higher than wide."""
    folder = tmp_path_factory.mktemp("data") / "norton_shapes"
    return generate_dataset(folder, train=9, val=2, height=96, width=128, seed=3)


@pytest.fixture
def quick(config, root):
    register_generated(root)
    file = "quick_schedules/norton_faster_rcnn_instant_test.yaml"
    return lambda **keys: config(file, **QUICK | {key.replace("__", "."): value for key, value in keys.items()})


def trained(cfg, stop: int | None = None, resume: bool = False) -> NortonTrainer:
    """A trainer after its run; ``stop``: killed in that iteration, before its step."""
    torch.manual_seed(0)  # of the fresh weights
    trainer = NortonTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    if stop is not None:

        def step(run=trainer.run_step):
            if trainer.iter == stop:
                raise KeyboardInterrupt
            run()

        trainer.run_step = step
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    return trainer


def stream(start: int = 0, rank: int = 0, processes: int = 1) -> list[list[tuple[int, int]]]:
    """Ten batches of four of twelve images, every third higher than wide."""
    order = random.Random(0)
    batches = BatchStream(
        (order.randrange(12) for _ in itertools.count()), [index % 3 > 0 for index in range(12)], 4, rank, processes
    )
    batches.start = start
    return list(itertools.islice(batches, 10 - start))


def test_batches_follow_from_their_number():
    whole = stream()
    assert stream(start=7) == whole[7:]
    assert [len({index % 3 > 0 for _, index in batch}) for batch in whole] == [1] * 10
    places = [place for batch in whole for place, _ in batch]
    assert len(set(places)) == 40 and max(places) < 48  # none twice, and few wait for company
    shares = [stream(rank=rank, processes=2) for rank in (0, 1)]
    assert [sorted(one + two) for one, two in zip(*shares, strict=True)] == whole


def test_random_numbers_of_an_image_leave_others_alone():
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(5)
    torch.manual_seed(5)
    with seeded(1, 2):
        first = np.random.rand(), torch.rand(1), random.random()
    assert (np.random.rand(), torch.rand(1)) == expected
    with seeded(1, 2):
        assert (np.random.rand(), torch.rand(1), random.random()) == first
    with seeded(1, 3):
        assert np.random.rand() != first[0]


def test_images_without_objects_are_replaced():
    records = [{"objects": 0}, {"objects": 2}]
    images = SeededImages(records, lambda record: record if record["objects"] else None, seed=0)
    assert images[0, 0] == images[1, 1] == records[1]
    with pytest.raises(InputError, match="expected some with objects, got 100 without"):
        SeededImages(records, lambda record: None, seed=0)[0, 0]


def test_images_are_the_same_with_workers(quick):
    cfg = quick(SOLVER__IMS_PER_BATCH=3)
    one, two = (
        list(itertools.islice(build_train_loader(quick(SOLVER__IMS_PER_BATCH=3, DATALOADER__NUM_WORKERS=n)), 4))
        for n in (0, 2)
    )
    for batch, other in zip(one, two, strict=True):
        assert [each["file_name"] for each in batch] == [each["file_name"] for each in other]
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batch, other, strict=True))
    shapes = {tuple(each["image"].shape) for batch in one for each in batch}
    assert len(shapes) > 1 and cfg.SEED == 1  # augmented at random


@pytest.mark.parametrize(("seed", "workers", "cut"), [(-1, 2, 3)])
def test_resumed_training_is_bit_identical(quick, tmp_path, seed, workers, cut):
    """Weights, momenta, average and statistics, from wherever it is cut off."""
    keys = {"SOLVER.MAX_ITER": 5, "SOLVER.EMA_DECAY": 0.5, "DATALOADER.NUM_WORKERS": workers, "SEED": seed}
    keys = {key.replace(".", "__"): value for key, value in keys.items()} | {"SOLVER__CHECKPOINT_PERIOD": 1}
    first = quick(OUTPUT_DIR=tmp_path / "cut", **keys)
    killed = trained(first, stop=cut)
    resumed = trained(first, resume=True)
    assert resumed.start_iter == cut and resumed.seed == killed.seed
    whole = trained(quick(OUTPUT_DIR=tmp_path / "whole", **keys | {"SEED": killed.seed}))
    left, right = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("cut", "whole"))
    assert_equal(left["model"], right["model"])
    assert_equal(left["trainer"], right["trainer"])
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    start = torch.load(tmp_path / "cut" / "model_0000000.pth", weights_only=True)
    name = "roi_heads.box_head.fc1.weight"
    assert not torch.equal(start["model"][name], left["model"][name])  # it has learned in between


def assert_equal(one, two, where: str = "") -> None:
    """Nested containers of tensors and numbers, bit for bit."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_equal(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    else:
        assert one == two, where


def test_averaged_weights(quick, tmp_path):
    cfg = quick(
        SOLVER__MAX_ITER=3, SOLVER__EMA_DECAY=0.75, OUTPUT_DIR=tmp_path, DATASETS__TEST="('norton_shapes_val',)"
    )
    trainer = NortonTrainer(cfg)
    trainer.resume_or_load(resume=False)
    name, seen = "roi_heads.box_predictor.cls_score.weight", []

    def step(run=trainer.run_step):
        run()
        seen.append(trainer.model.get_parameter(name).detach().clone())

    trainer.run_step = step
    trainer.train()
    first, second = 2 / 11, 3 / 12  # the decay rises to its value
    expected = second * (first * seen[0] + (1 - first) * seen[1]) + (1 - second) * seen[2]
    kept = load_detector(with_weights(cfg, tmp_path / "model_ema.safetensors"))
    assert torch.allclose(kept.get_parameter(name), expected, atol=1e-7)
    assert not torch.equal(expected, seen[2])
    again = NortonTrainer.test(cfg, kept)
    assert again["bbox"] == pytest.approx(trainer.last_results()["bbox"], nan_ok=True)


def test_learning_rate_is_scaled_to_the_batch(caplog):
    def rate(*opts: str) -> float:
        return scale_learning_rate(load_config("norton_faster_rcnn.yaml", opts)).SOLVER.BASE_LR

    with caplog.at_level(logging.INFO, "norton_det"):
        assert rate() == 0.02
        assert rate("SOLVER.IMS_PER_BATCH", "4") == pytest.approx(0.005)
    assert "0.005 for batches of 4 images, scaled from 0.02 for 16" in caplog.text
    assert rate("SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.01") == 0.01
    given = ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.01", "SOLVER.REFERENCE_IMS_PER_BATCH", "8")
    assert rate(*given) == pytest.approx(0.005)
    with pytest.raises(InputError, match="REFERENCE_IMS_PER_BATCH: expected 0 or more"):
        rate("SOLVER.REFERENCE_IMS_PER_BATCH", "-1")


@pytest.mark.parametrize("value", ["0", 0, 0.0, "0.0", "-0"])
def test_whole_numbers_are_taken_for_floats(value):
    assert load_config("norton_faster_rcnn.yaml", ["SOLVER.EMA_DECAY", value]).SOLVER.EMA_DECAY == 0
    with pytest.raises(InputError, match=r"option SOLVER\.EMA_DECAY: .*; give a value of its type"):
        load_config("norton_faster_rcnn.yaml", ["SOLVER.EMA_DECAY", "much"])


def test_batches_that_cannot_be_shared_are_refused(quick, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(InputError, match="IMS_PER_BATCH: expected a multiple of 2 processes, got 3"):
        build_train_loader(quick(SOLVER__IMS_PER_BATCH=3))


def test_rates_of_configs_of_ones_own_are_as_they_are(tmp_path):
    """A rate is scaled where the file that sets it says what batches it is for."""
    base = find_config("norton_faster_rcnn.yaml")
    rates = {}
    for name, solver in (
        ("size", "{IMS_PER_BATCH: 4}"),
        ("rate", "{IMS_PER_BATCH: 4, BASE_LR: 0.005}"),
        ("both", "{IMS_PER_BATCH: 4, BASE_LR: 0.04, REFERENCE_IMS_PER_BATCH: 32}"),
    ):
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"_BASE_: {base}\nSOLVER: {solver}\n")
        rates[name] = scale_learning_rate(load_config(str(file))).SOLVER.BASE_LR
    assert rates == pytest.approx({"size": 0.005, "rate": 0.005, "both": 0.005})


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        ("SOLVER__EMA_DECAY", 1, r"SOLVER\.EMA_DECAY: expected 0 to less than 1, got 1\.0"),
        ("SOLVER__DISTILL__RPN", -1, r"SOLVER\.DISTILL\.RPN: expected a number, 0 or more, got -1\.0"),
        (
            "MODEL__NORTON__CALIBRATION_IMAGES",
            -1,
            r"NORTON\.CALIBRATION_IMAGES: expected a whole number of 0 or more, got -1",
        ),
        (
            "MODEL__NORTON__CALIBRATION_IMAGES",
            None,
            r"expected a whole number of 0 or more, got None; the default is 0",
        ),
        ("SOLVER__DISTILL__WEIGHTS", "none.pth", "none.pth: expected the teacher of SOLVER.DISTILL.WEIGHTS"),
    ],
)
def test_settings_that_make_no_sense_are_refused(quick, key, value, pattern):
    with pytest.raises(InputError, match=pattern):
        NortonTrainer(quick(**{key: value}))


def test_loaders_of_ones_own_go_on(quick, tmp_path, caplog):
    """Detectron2's way to change the mapper; batches are not passed over then, and that is said."""

    class Own(NortonTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(cfg)

    cfg = quick(SOLVER__MAX_ITER=1, OUTPUT_DIR=tmp_path)
    for resume in (False, True):
        trainer = Own(quick(SOLVER__MAX_ITER=1 + resume, OUTPUT_DIR=tmp_path))
        with caplog.at_level(logging.WARNING, "norton_det"):
            trainer.resume_or_load(resume=resume)
        trainer.train()
    assert "goes on with other images than it had" in caplog.text and cfg.SEED == 1
    marked = build_train_loader(cfg, mapper=lambda record: record["file_name"])
    assert all(name.endswith(".jpg") for name in next(iter(marked)))


def test_classes_of_another_data_set_are_refused(quick):
    with pytest.raises(InputError, match=r"NUM_CLASSES: expected 5, the classes of norton_shapes_train, got 3; set it"):
        build_train_loader(quick(MODEL__ROI_HEADS__NUM_CLASSES=3))


def test_masks_that_do_not_fit_are_named(config, root):
    """Runs beside polygons, which Detectron2 takes as bitmasks alone."""
    register_generated(root)
    keys = QUICK | {"SOLVER.IMS_PER_BATCH": 9, "INPUT.RANDOM_FLIP": "none"}
    found = {}
    for form in ("polygon", "bitmask"):
        cfg = config("quick_schedules/norton_mask_rcnn_instant_test.yaml", **keys | {"INPUT.MASK_FORMAT": form})
        loader = build_train_loader(cfg)
        records = [loader.dataset.records[index] for index in range(len(loader.dataset))]
        for thing in records[0]["annotations"]:
            thing["segmentation"] = mask_utils.merge(mask_utils.frPyObjects(thing["segmentation"], 96, 128))
        found[form] = SeededImages(records, loader.dataset.mapper, 0)
    with pytest.raises(
        InputError, match=r"\.jpg: expected annotations that fit the config, .* INPUT\.MASK_FORMAT bitmask"
    ):
        found["polygon"][0, 0]
    assert len(found["bitmask"][0, 0]["instances"].gt_masks) > 0


@pytest.fixture
def changed_masks(config, root, tmp_path):
    """The training loader of the generated pictures, with the first object that is no crowd changed."""

    def load(change, mask_format: str = "polygon"):
        content = json.loads((root / "annotations" / "instances_train2017.json").read_text())
        change(next(found for found in content["annotations"] if not found["iscrowd"]))
        file = tmp_path / f"changed_{len(list(tmp_path.iterdir()))}.json"
        file.write_text(json.dumps(content))
        register_coco_folder(f"{tmp_path.name}_{file.stem}", file, root / "train2017")
        keys = QUICK | {"DATASETS.TRAIN": (f"{tmp_path.name}_{file.stem}",), "INPUT.MASK_FORMAT": mask_format}
        return build_train_loader(config("quick_schedules/norton_mask_rcnn_instant_test.yaml", **keys))

    return load


def as_runs(found: dict) -> None:
    runs = mask_utils.merge(mask_utils.frPyObjects(found["segmentation"], 96, 128))
    found["segmentation"] = runs | {"counts": runs["counts"].decode()}


def drawn(record: dict) -> np.ndarray:
    found = next(found["segmentation"] for found in record["annotations"] if not found["iscrowd"])
    runs = found if isinstance(found, dict) else mask_utils.merge(mask_utils.frPyObjects(found, 96, 128))
    return mask_utils.decode(runs)


def test_runs_beside_polygons_are_the_same_masks(changed_masks):
    loaders = changed_masks(lambda found: None), changed_masks(as_runs), changed_masks(as_runs, "bitmask")
    same, mixed, bitmask = (drawn(loader.dataset.records[0]) for loader in loaders)
    assert same.shape == (96, 128) and same.any()
    assert (same == mixed).all() and (same == bitmask).all()
    assert all(len(loader.dataset[0, 0]["instances"].gt_masks) > 0 for loader in loaders)


@pytest.mark.parametrize(
    ("segmentation", "pattern"),
    [
        (None, r"\.jpg: expected a mask for each object, .* set MODEL.MASK_ON False"),
        ({"size": [96, 128], "counts": [96 * 128]}, r"\.jpg: expected a mask for each object"),
        (
            {"size": [8, 8], "counts": [10, 20, 34]},
            r"segmentation: expected runs of the size \[96, 128\], got \[8, 8\]",
        ),
    ],
)
def test_objects_without_fitting_masks_are_named(changed_masks, segmentation, pattern):
    with pytest.raises(InputError, match=pattern):
        changed_masks(lambda found: found.update(segmentation=segmentation))


# --- distillation -----------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher_file(config, tmp_path):
    torch.manual_seed(0)
    cfg = config("norton_faster_rcnn.yaml", **{"MODEL.NORTON.PRESET": "dense", "MODEL.ROI_HEADS.NUM_CLASSES": 5})
    path = tmp_path / "dense.safetensors"
    save_detector(path, build_detector(cfg))
    return path


def test_distillation_from_itself_is_nothing(quick, teacher_file):
    cfg = quick(SOLVER__DISTILL__WEIGHTS=teacher_file, MODEL__RESNETS__NORM="FrozenBN")
    student = load_as_it_is(with_weights(cfg, teacher_file)).train()
    distillation_of(cfg, student).install()
    batch = next(iter(build_train_loader(cfg)))
    with EventStorage():
        losses = student(batch)
    added = {name: float(loss) for name, loss in losses.items() if name.startswith("loss_distill")}
    assert added.keys() == {"loss_distill_features", "loss_distill_rpn", "loss_distill_box"}
    assert all(abs(loss) < 1e-4 for loss in added.values()) and {"loss_cls", "loss_rpn_cls"} <= losses.keys()
    assert student.eval()(batch)[0]["instances"] is not None


def test_distillation_teaches(quick, teacher_file, tmp_path):
    """With each of the losses, a compressed detector comes nearer to the dense one in it than by labels alone."""
    terms = ("features", "rpn", "box")

    def distances(chosen: str) -> dict[str, float]:
        factors = {f"SOLVER__DISTILL__{term.upper()}": float(term == chosen) for term in terms}
        steps = {"SOLVER__MAX_ITER": 10, "SOLVER__CHECKPOINT_PERIOD": 100, "OUTPUT_DIR": tmp_path}
        file = teacher_file if chosen else ""
        start = {"MODEL__WEIGHTS": teacher_file, "MODEL__RESNETS__NORM": "FrozenBN", "SOLVER__WARMUP_ITERS": 0}
        trainer = trained(compress_weights(quick(SOLVER__DISTILL__WEIGHTS=file, **start, **steps, **factors)))
        recorded = {name for name in trainer.storage.histories() if "distill" in name}
        assert recorded == ({f"loss_distill_{chosen}"} if chosen else set())
        model = trainer.model
        probe = quick(SOLVER__DISTILL__WEIGHTS=teacher_file)
        distillation_of(probe, model).install()
        with torch.no_grad(), seeded(0), EventStorage():
            losses = model(next(iter(build_train_loader(probe))))
        return {term: float(losses[f"loss_distill_{term}"]) for term in terms}

    by_labels = distances("")
    for term in terms:
        assert distances(term)[term] < by_labels[term], term


def test_distillation_losses_by_hand(quick):
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    assert float(class_divergence(logits, logits + 3)) == pytest.approx(0, abs=1e-6)
    p, q = torch.tensor([[1.0, 0.0, 0.0]]).softmax(1), logits.softmax(1)
    expected = float((p * (p / q).log()).sum())
    assert float(class_divergence(logits, torch.tensor([[1.0, 0.0, 0.0]]))) == pytest.approx(expected)
    assert float(class_divergence(logits[:0], logits[:0])) == 0
    one = objectness_divergence([torch.zeros(1, 3, 2, 2)], [torch.full((1, 3, 2, 2), 4.0)])
    sigma = 1 / (1 + np.exp(-4.0))
    kl = sigma * np.log(sigma / 0.5) + (1 - sigma) * np.log((1 - sigma) / 0.5)
    assert float(one) == pytest.approx(kl / sigma, rel=1e-5)
    detector = build_detector(quick())
    other = build_detector(quick(MODEL__ROI_HEADS__NUM_CLASSES=3))
    with pytest.raises(InputError, match="expected a teacher of 5 classes, got 3"):
        Distillation(detector, other, DistillWeights())


# --- several processes ------------------------------------------------------------------------------------------------


def train_net(
    root: Path, output: Path, *flags: object, start: tuple[str, ...] = (), workers: int = 0, weights: Path | str = ""
) -> subprocess.CompletedProcess:
    """A training in processes of its own, two iterations in batches of two, with all regions in the losses.

    ``start``: what Python is called with instead of ``tools/train_net.py``.
    """
    tool = (str(find_config("Base-RCNN-FPN.yaml").parent.parent / "tools" / "train_net.py"),)
    keys = QUICK | {
        "SOLVER.MAX_ITER": 2,
        "OUTPUT_DIR": output,
        "MODEL.WEIGHTS": weights,
        "MODEL.RESNETS.NORM": "FrozenBN",
    }
    keys |= {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1000}
    keys |= {"MODEL.RPN.POST_NMS_TOPK_TRAIN": 50, "INPUT.MIN_SIZE_TRAIN": (64,)}  # of one size: no padding
    keys |= {"DATALOADER.NUM_WORKERS": workers}
    environment = os.environ | {"DETECTRON2_DATASETS": str(root.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [
            *(sys.executable, *(start or tool), "--config", "quick_schedules/norton_faster_rcnn_instant_test.yaml"),
            *map(str, flags),
            *(str(word) for pair in keys.items() for word in pair),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def losses_of(folder: Path) -> dict[str, float]:
    """Of the last iteration that metrics.json has."""
    row = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
    return {name: value for name, value in row.items() if "loss" in name}


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory) -> Path:
    """The folder of a training in one process."""
    folder = tmp_path_factory.mktemp("alone") / "one"
    done = train_net(root, folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("way", ["script of a clone", "console script", "torchrun"])
def test_two_processes_are_one(root, tmp_path, alone, way):
    """The RPN's losses are equal; those of regions, means in each process of about as many, within 3 %."""
    if way == "script of a clone":
        done = train_net(root, tmp_path / "two", "--num-gpus", 2)
    elif way == "console script":  # as pip writes it
        script = tmp_path / "norton-det"
        script.write_text("from norton_det.commands.main import entry\nif __name__ == '__main__':\n    entry()\n")
        done = train_net(root, tmp_path / "two", "--num-gpus", 2, start=(str(script), "train"), workers=1)
    else:
        torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "norton_det", "train")
        done = train_net(root, tmp_path / "two", start=torchrun)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = losses_of(alone), losses_of(tmp_path / "two")
    assert one.keys() == two.keys() and len(one) >= 5
    rpn = [name for name in one if "rpn" in name]
    assert len(rpn) == 2 and [two[name] for name in rpn] == pytest.approx([one[name] for name in rpn], rel=1e-3)
    assert two == pytest.approx(one, rel=0.03)


def test_bad_input_in_a_process_is_one_line(root, tmp_path):
    """A picture that is damaged is met by the process, or the worker of one, that reads it."""
    copy = tmp_path / "norton_shapes"
    shutil.copytree(root, copy)
    for picture in (copy / "train2017").iterdir():
        picture.write_bytes(b"no picture")
    for flags, workers in ((("--num-gpus", 2), 0), ((), 1)):
        done = train_net(copy, tmp_path / "run", *flags, workers=workers)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and lines and "Traceback" not in done.stdout + done.stderr, done.stderr[-2000:]
        assert all(".jpg: expected the image of the annotations, got another file" in line for line in lines)


def test_two_processes_start_from_weights_fitted_by_one(root, tmp_path, dense_file):
    done = train_net(root, tmp_path / "run", "--num-gpus", 2, weights=dense_file)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "start_norton-78.safetensors").exists() and losses_of(tmp_path / "run")
    copy = tmp_path / "norton_shapes"
    shutil.copytree(root, copy)
    for picture in (copy / "train2017").iterdir():
        picture.write_bytes(b"no picture")
    done = train_net(copy, tmp_path / "none", "--num-gpus", 2, weights=dense_file)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr, done.stderr[-2000:]
    assert lines and all("expected images, got" in line and "cannot be read" in line for line in lines)

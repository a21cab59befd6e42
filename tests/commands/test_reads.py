"""A file of weights is opened once by a command: what was checked is what is used, and nothing is parsed again."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from norton_det.checkpoint.opened import open_weights, reading_once
from norton_det.data.generate import generate_dataset
from norton_det.deploy.loading import load_detector
from norton_det.models.spec import CompressionSpec
from norton_det.tv import fasterrcnn_norton_resnet50_fpn, save_detector
from norton_det.utils.configs import find_config

RESNET18 = CompressionSpec.dense("resnet18")
SMALL = [
    *("MODEL.RESNETS.NORM", "FrozenBN", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "SEED", 1),
    *("SOLVER.IMS_PER_BATCH", 1, "SOLVER.STEPS", "()", "SOLVER.MAX_ITER", 1, "DATALOADER.NUM_WORKERS", 0),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.DEVICE", "cpu"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "TEST.DETECTIONS_PER_IMAGE", 5),
]
SETS = ("train", "val")
_reads: list[Counter] = []


def _listen(event: str, arguments: tuple) -> None:
    if event != "open" or not _reads or not isinstance(arguments[0], str | os.PathLike):
        return
    if not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        _reads[-1][os.path.realpath(arguments[0])] += 1


sys.addaudithook(_listen)  # Python has no way to take it off; it does nothing without a counter


@pytest.fixture
def reads() -> Iterator[Callable[[Path], int]]:
    """``reads(file)``: how often it was opened for reading since the last time it was asked for."""
    _reads.append(Counter())
    yield lambda file: _reads[-1].pop(os.path.realpath(file), 0)
    _reads.pop()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A dense ResNet-18 of two classes, in torchvision's form."""
    state = torchvision.models.resnet18(num_classes=2).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save({"model": state, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Generated pictures with annotations."""
    return generate_dataset(tmp_path_factory.mktemp("data") / "shapes", train=2, val=1, height=96, width=96, seed=3)


def test_the_count_can_fail(reads, classifier):
    for _ in range(2):
        open_weights(classifier)
    assert reads(classifier) == 2 and reads(classifier) == 0
    with reading_once():
        assert open_weights(classifier) is open_weights(classifier)
        with reading_once():
            open_weights(classifier)
        assert reads(classifier) == 1
        os.utime(classifier, ns=(1, 1))  # another file, for all that is known
        open_weights(classifier)
        assert reads(classifier) == 1
    open_weights(classifier)
    assert reads(classifier) == 1


def test_classifiers(call, reads, classifier, tmp_path):
    small = tmp_path / "small.safetensors"
    words = ["--criterion", "norm", "--quiet", "--input-size", 64, 64]
    status, _, err = call(
        "tools/compress.py", "--weights", classifier, "--output", small, "--preset", "norton-78", *words
    )
    assert status == 0 and reads(classifier) == 1, err
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "data" / name / "0.png")
    status, _, err = call(
        "tools/evaluate.py", "--weights", small, "--data", tmp_path / "data", "--workers", 0, "--quiet"
    )
    assert status == 0 and reads(small) == 1, err
    status, _, err = call("tools/analyze_complexity.py", "--weights", small)
    assert status == 0 and reads(small) == 1, err


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_detectors_of_torchvision(call, reads, form, tmp_path):
    detector = fasterrcnn_norton_resnet50_fpn(spec=RESNET18, num_classes=3)
    file = tmp_path / f"faster.{form}"
    if form == "pth":
        torch.save({"model": detector.state_dict()}, file)
    else:
        save_detector(file, detector)
    load_detector(str(file))
    assert reads(file) == 1
    words = ["--quiet", "--input-size", 64, 64, "--criterion", "norm"]
    for number, ranks in enumerate((["--preset", "norton-78"], ["--neck-rank", 1], ["--target-params", "60%"])):
        small = tmp_path / f"{number}.safetensors"
        status, _, err = call("tools/compress.py", "--weights", file, "--output", small, *ranks, *words)
        assert status == 0 and reads(file) == 1, err


def test_detectors_of_detectron2(call, reads, classifier, shapes, tmp_path):
    """A training is started from dense weights, resumed, compressed and evaluated."""
    entries = [
        f"{name}={shapes}/annotations/instances_{name}2017.json:{shapes}/{name}2017" for name in ("train", "val")
    ]
    config = ["--config", "norton_faster_rcnn_resnet18.yaml"]
    sets = ["DATASETS.TRAIN", "('train',)", "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "out"]
    words = [*SMALL, "MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.NORTON.CALIBRATION_IMAGES", 0]
    run = [*config, *(word for entry in entries for word in ("--register", entry))]
    start, last = tmp_path / "out" / "start_norton-78.safetensors", tmp_path / "out" / "model_final.pth"
    status, _, err = call("tools/train_net.py", *run, *sets, *words, "MODEL.WEIGHTS", classifier)
    assert status == 0, err
    assert (reads(classifier), reads(start)) == (1, 1)
    status, _, err = call(
        "tools/train_net.py", *run, "--resume", *sets, *words, "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 2
    )
    assert status == 0 and reads(last) == 1, err
    evaluated = ["DATASETS.TEST", "('val',)", "OUTPUT_DIR", tmp_path / "eval", "MODEL.WEIGHTS", last]
    status, _, err = call("tools/train_net.py", *run, "--eval-only", *words, *evaluated)
    assert status == 0 and reads(last) == 1, err
    load_detector(str(last), config[1], [*map(str, words)])
    assert reads(last) == 1
    small, own = tmp_path / "small.safetensors", tmp_path / "own.yaml"
    own.write_text(f"_BASE_: {find_config(config[1])}\nMODEL: {{ROI_HEADS: {{NUM_CLASSES: 5}}}}\n")
    ranks = ["--neck-rank", 1, "--quiet", "--input-size", 64, 64]
    status, _, err = call("tools/compress.py", "--config", own, "--weights", last, "--output", small, *ranks)
    assert status == 0 and reads(last) == 1, err

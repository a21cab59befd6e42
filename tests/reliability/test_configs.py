"""Configs with a value that is wrong: no error but one line, with the key's name, before anything is trained.

Each key of Detectron2's config, and of this package's, gets values of another type, unknown words, wrong lengths,
negative numbers, zero and nothing, through the command line as a user gives them, and by assignment as a script does,
in networks with boxes, masks, keypoints, a cascade, and without regions. What is let through builds, trains a step, and
is evaluated.
"""

import argparse
import logging
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("detectron2")

from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from norton_det.commands.train_net import configure
from norton_det.d2 import NortonTrainer, load_config
from norton_det.d2.config_values import leaves
from norton_det.utils.errors import InputError

from . import LONG
from .promises import Row
from .small import OPTIONS

CASES = 1500 if LONG else 15  # of a base
NOT_TRIED = ("GLOBAL.HACK", "OUTPUT_DIR", "DATALOADER.NUM_WORKERS")
SMALL = OPTIONS | {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.NORTON.RATIOS": "None",
    "MODEL.NORTON.CALIBRATION_IMAGES": 0,
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
}
SHAPES = {"MODEL.ROI_HEADS.NUM_CLASSES": 5, "DATASETS.TRAIN": "('norton_shapes_train',)"}
OF_DETECTRON2 = {"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone"}
BASES: dict[str, dict[str, object]] = {
    "boxes and masks": SHAPES | {"MODEL.MASK_ON": True},
    "keypoints": {
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "DATASETS.TRAIN": "('norton_shapes_keypoints_train',)",
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": "(32,)",
    },
    "Detectron2's cascade": SHAPES
    | OF_DETECTRON2
    | {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True},
    "RetinaNet": SHAPES
    | {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": "['res3','res4','res5']",
        "MODEL.FPN.IN_FEATURES": "['res3','res4','res5']",
        "MODEL.RETINANET.NUM_CLASSES": 5,
        "MODEL.RETINANET.NUM_CONVS": 1,
    },
}
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 3, 0.5, 1.5, -0.5, "abc", "", (), (0,), (-1,), (None,), ("abc",), (1, 2, 3), ((1,), (2,))),
    *((0.5, 0.4), ([1, 2], [3]), (1,) * 7, {"a": 1}, float("nan"), float("inf"), "cpu", "(1", 2**40),
]
TOO_LARGE = 2**40


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize("base", BASES)
def test_wrong_values(base, tmp_path, keep):
    options = SMALL | BASES[base]
    cases = random.Random(base).sample(list(_cases(options)), CASES)
    outcomes: Counter[str] = Counter()
    broken = []
    for key, value, how in cases:
        try:
            outcomes[_try(options, key, value, how, tmp_path)] += 1
        except Exception as error:
            broken.append(f"{key} {value!r} ({how}): {type(error).__name__}: {error}"[:300])
    kept, told = len(cases) - len(broken), "; ".join(broken) or dict(outcomes)
    keep(Row("wrong values in configs: no error but one line", kept, len(cases), told))


def _cases(options: dict[str, object]) -> Iterator[tuple[str, Any, str]]:
    """Each key with each value, as the command line and as a script give it."""
    for key, _ in leaves(load_config("norton_faster_rcnn.yaml")):
        if key in NOT_TRIED:
            continue
        for value in VALUES:
            if value != TOO_LARGE or key not in options:
                yield from ((key, value, how) for how in ("words", "assigned"))


def _try(options: dict[str, object], key: str, value: Any, how: str, folder: Path) -> str:
    """What becomes of a config with this value: refused in one line, or trained a step and evaluated."""
    words = {**options, "OUTPUT_DIR": folder / "out"} | ({key: value} if how == "words" else {})
    opts = [word for name, given in words.items() for word in (name, str(given))]
    args = argparse.Namespace(
        config_file="quick_schedules/norton_faster_rcnn_instant_test.yaml",
        register=[],
        partial=False,
        epochs=None,
        opts=opts,
        json=None,
        eval_only=False,
        num_gpus=1,
        num_machines=1,
    )
    try:
        cfg = configure(args)
        if how == "assigned":
            cfg = _assigned(cfg, key, value)
        trainer = NortonTrainer(cfg)
        with EventStorage():
            trainer.train()
        NortonTrainer.test(cfg, trainer.detector.eval())
    except InputError as error:
        assert "\n" not in str(error) and re.search(r"[A-Z]", str(error))
        return "refused"
    return "trained"


def _assigned(cfg: CfgNode, key: str, value: Any) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    *path, name = key.split(".")
    node = cfg
    for part in path:
        node = node[part]
    node[name] = value
    cfg.freeze()
    return cfg

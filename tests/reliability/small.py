"""What the checks train: a few generated pictures, options that make a step of a detector quick, a tiny classifier."""

from pathlib import Path

import torch

from norton_det.data import generate_dataset
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec

CONFIG = "quick_schedules/norton_faster_rcnn_instant_test.yaml"
OPTIONS: dict[str, object] = {
    "MODEL.NORTON.RATIOS": "[0.5]+[0.9]*3+[0.9]*16",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.STEPS": "()",
    "SOLVER.MAX_ITER": 3,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TEST": "()",
    "SEED": 1,
}


SPEC = CompressionSpec.parse(1, "[0.95]+[0.9]*3+[0.97]*16", name="tiny")


def model() -> NortonResNet:
    torch.manual_seed(0)
    return NortonResNet(SPEC, 2)


def prepare(folder: Path, pictures: int = 9) -> Path:
    """Generate pictures below ``folder``, where ``norton_shapes_train`` is found if it is ``DETECTRON2_DATASETS``."""
    generate_dataset(folder / "norton_shapes", train=pictures, val=2, height=96, width=128, seed=3)
    return folder


def words(output: Path, **changes: object) -> list[str]:
    """``KEY VALUE`` pairs for tools/train_net.py; a key's dots are two underscores."""
    options = OPTIONS | {"OUTPUT_DIR": output} | {key.replace("__", "."): value for key, value in changes.items()}
    return [word for key, value in options.items() for word in (key, str(value))]

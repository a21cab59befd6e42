"""Fixtures of the Detectron2 tests: configs of small pictures, catalogues that are left as they were."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from norton_det.checkpoint.save import save_checkpoint
from norton_det.d2 import load_config
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec

# small pictures, few regions: what a step costs is the heads
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.NORTON.CALIBRATION_IMAGES": 0,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "TEST.DETECTIONS_PER_IMAGE": 10,
}


@pytest.fixture(autouse=True)
def _leave_no_trace():
    """Detectron2's catalogues and loggers are global; small networks are slower on more threads of a busy machine."""
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    for name in [name for name in DatasetCatalog if name.startswith(("norton_shapes", "bccd"))]:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)
    threads, level = torch.get_num_threads(), logging.getLogger("detectron2").level
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    logging.getLogger("detectron2").setLevel(level)
    for catalog, content in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data.clear()
        catalog.data.update(content)


@pytest.fixture(scope="session")
def config() -> Callable[..., CfgNode]:
    """``config(file, **{"KEY": value})``: a config with small pictures and the given changes."""

    def make(file: str = "norton_faster_rcnn.yaml", **keys: object) -> CfgNode:
        options = SMALL | keys
        return load_config(file, [word for key, value in options.items() for word in (key, str(value))])

    return make


def classifier(preset: str = "norton-78", num_classes: int = 10, **options: object) -> NortonResNet:
    """A random network whose normalisations are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NortonResNet(CompressionSpec.preset(preset), num_classes, **options)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif ".bn" in name and name.endswith(("weight", "bias")):
            tensor.uniform_(0.1, 0.9, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def norton_64(tmp_path_factory) -> Path:
    """The checkpoint of a norton-64 classifier."""
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "norton-64.safetensors", classifier("norton-64"))


@pytest.fixture(scope="session")
def dense_file(tmp_path_factory) -> Path:
    """A dense classifier as torchvision saves it: a state dict, here in half precision."""
    state = classifier("dense").state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, path)
    return path

"""Targets of whole Detectron2 detectors; pictures read as the config's detector is tested."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.save import save_detector
from norton_det.compression.detector import compress_detector
from norton_det.compression.search.search import search
from norton_det.d2.build import load_detector, to_input
from norton_det.data.images import load_pictures
from norton_det.deploy import Predictor
from norton_det.models.stacks import stack_named


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pictures, one of them damaged."""
    path = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        pixels = (255 * torch.rand(4, 6, 3, generator=generator)).byte().numpy()
        Image.fromarray(pixels).resize((120, 80), Image.Resampling.BICUBIC).save(path / f"{index}.png")
    (path / "damaged.jpg").write_bytes(b"no picture")
    return path


@pytest.mark.parametrize("colours", ["BGR", "RGB"])
def test_pictures_as_at_test_time(config, folder, colours):
    cfg = config("dense_faster_rcnn.yaml", **{"INPUT.MIN_SIZE_TEST": 160, "INPUT.FORMAT": colours})
    inputs, broken = load_pictures(folder, to_input(cfg), count=8)
    assert [path.name for path in broken] == ["damaged.jpg"] and len(inputs) == 3
    assert {tuple(each["image"].shape) for each in inputs} == {(3, 160, 240)} and inputs[0]["height"] == 80
    plain = Image.new("RGB", (160, 160), (250, 100, 0))
    assert to_input(cfg)(plain)["image"][:, 0, 0].tolist() == ([250, 100, 0] if colours == "RGB" else [0, 100, 250])


def test_pictures_at_their_size():
    """INPUT.MIN_SIZE_TEST 0 in the commands that load a detector by its config; no limit of detections."""
    opts = [
        "TEST.DETECTIONS_PER_IMAGE",
        "-1",
        "INPUT.MIN_SIZE_TEST",
        "0",
        "MODEL.DEVICE",
        "cpu",
        "MODEL.RESNETS.DEPTH",
        "18",
    ]
    stack = stack_named("detectron2")
    detector = stack.load_detector("", "dense_faster_rcnn.yaml", [*opts, "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"])
    assert stack.parts_of(detector).box_rule.limit > 10_000
    assert Predictor(detector).prepare(np.zeros((70, 90, 3), np.uint8)).shape == (1, 3, 70, 90)


def test_a_target_with_pictures(config, folder, tmp_path, quick_search):
    """Detectron2's own ResNet, by the pictures, to a file that loads again."""
    own = {"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone", "INPUT.MIN_SIZE_TEST": 64}
    cfg = config("dense_faster_rcnn.yaml", **own)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    inputs, _ = load_pictures(folder, to_input(cfg), count=3)
    size = (3, 64, 96)
    found = search(model, target_macs="35%", calibration=inputs, input_size=size, settings=quick_search)
    assert abs(found.reached / found.target - 1) <= 0.05 and len(found.layout) == 7
    result = compress_detector(model, found.spec, layout=found.layout, criterion="norm", starts=1, input_size=size)
    assert result.report.macs[1] == found.reached
    path = tmp_path / "small.safetensors"
    save_detector(path, result.model, config=cfg)
    assert open_weights(path).layout == {name: rank for name, rank in found.layout.items() if rank}
    again = load_detector(config("norton_faster_rcnn.yaml", **{"MODEL.WEIGHTS": str(path)}))
    image = [{"image": 255 * torch.rand(3, 64, 96)}]
    with torch.no_grad():
        one, two = (model(image)[0]["instances"].pred_boxes.tensor for model in (again, result.model))
    assert torch.allclose(one, two, atol=1e-3)
    json.dumps(found.to_dict())

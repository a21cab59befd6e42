"""A torchvision detector's file says all that its weights do not: anchors, sizes, thresholds, labels."""

import json

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import norton_det as nd
from norton_det.checkpoint.opened import DETECTOR_KEY, open_weights
from norton_det.checkpoint.tensor_file import read_safetensors, write_tensors
from norton_det.deploy.info import describe
from norton_det.deploy.loading import load_detector
from norton_det.models.labels import labels_of
from norton_det.tv.settings import settings_of
from norton_det.utils.errors import InputError

from .test_detectors import SMALL, images

OTHERS = SMALL | {
    "min_size": (64, 80),
    "rpn_nms_thresh": 0.6,
    "box_score_thresh": 0.0,
    "box_nms_thresh": 0.4,
    "bbox_reg_weights": (5.0, 5.0, 2.5, 2.5),
}


def small_anchors(count: int = 2) -> AnchorGenerator:
    return AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), (tuple(0.5 * (n + 1) for n in range(count)),) * 5)


@pytest.fixture(scope="module")
def detector():
    """torchvision's own Faster R-CNN with nothing left as it usually is."""
    torch.manual_seed(0)
    options = OTHERS | {"rpn_anchor_generator": small_anchors()}
    model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, **options).eval()
    for module in model.backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0  # as torchvision's first COCO detectors
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        (expected,), (got,) = one(images(1)), other(images(1))
    return len(expected["boxes"]) > 0 and all(torch.equal(expected[key], got[key]) for key in expected)


def test_nothing_is_lost(detector, tmp_path):
    path = nd.save_checkpoint(tmp_path / "own.safetensors", detector, classes=["a", "b", "c"])
    for again in (nd.load_checkpoint(path), load_detector(str(path))):
        assert settings_of(again) == settings_of(detector) and labels_of(again).classes == ("a", "b", "c")
        assert same(detector, again)
    info = describe(again)
    assert (info.min_size, info.max_size) == (80, 96) and info.classes == ("background", "a", "b", "c")
    assert json.loads(json.dumps(settings_of(detector))) == settings_of(detector)


def test_after_compression(detector, tmp_path):
    small = nd.compress_detector(detector, "norton-78", neck_rank=1, box_head_rank=8).model
    again = nd.load_checkpoint(nd.save_checkpoint(tmp_path / "small.safetensors", small))
    assert same(small, again) and settings_of(again) == settings_of(detector)


def test_what_a_file_cannot_hold_is_refused(detector, tmp_path):
    class Own(AnchorGenerator):
        """Anchors of a user."""

    model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, **SMALL)
    model.roi_heads.box_head.fc7 = nn.Sequential(model.roi_heads.box_head.fc7)
    with pytest.raises(InputError, match=r"expected what torchvision's builders make .* got another \(roi_heads"):
        nd.save_checkpoint(tmp_path / "x.safetensors", model)
    model.rpn.anchor_generator = Own()
    with pytest.raises(InputError, match="rpn_anchor_generator: expected torchvision's, got Own"):
        nd.save_checkpoint(tmp_path / "x.safetensors", model)
    model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, fixed_size=(96, 64))
    with pytest.raises(InputError, match="got fixed_size or _skip_resize, which a file cannot hold"):
        nd.save_checkpoint(tmp_path / "x.safetensors", model)
    with pytest.raises(InputError, match="classes: expected 3, as many as the detector has, got 2"):
        nd.save_checkpoint(tmp_path / "x.safetensors", detector, classes=["a", "b"])
    assert not list(tmp_path.iterdir())


def test_anchors_that_no_file_names_are_refused(detector, tmp_path):
    torch.save(detector.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match="expected torchvision's 3 anchors of a cell, got 2, and no word"):
        load_detector(str(tmp_path / "bare.pth"))


def test_outputs_of_coco_are_named(tmp_path):
    model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, **SMALL)
    torch.save(model.state_dict(), tmp_path / "coco.pth")
    info = describe(load_detector(str(tmp_path / "coco.pth")))
    assert info.classes[13] == "stop sign" and info.category_ids[13] == 13
    assert info.classes[12] == "" and info.category_ids[12] is None and len(info.classes) == 91


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "settings: expected names with values"),
        ({"anchors": 1}, "settings: unknown field 'anchors'"),
        ({"box_nms_thresh": "0.5"}, "settings: box_nms_thresh: expected a number or list"),
        ({"max_size": True}, "settings: max_size: expected a number or list"),
        ({"rpn_anchor_generator": {"sides": [[8]]}}, "settings: expected what torchvision takes"),
        ({"box_roi_pool": {"size": 7}}, "settings: expected what torchvision takes"),
    ],
)
def test_damaged_settings(detector, settings, message, tmp_path):
    path = nd.save_checkpoint(tmp_path / "own.safetensors", detector)
    fields, tensors = read_safetensors(path)
    fields[DETECTOR_KEY]["settings"] = settings
    write_tensors(path, tensors, fields)
    with pytest.raises(InputError, match=message) as caught:
        load_detector(str(path))
    assert "\n" not in str(caught.value)


def test_older_files_are_read(detector, tmp_path):
    """Without settings and labels, as versions before wrote them."""
    model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    path = nd.save_checkpoint(tmp_path / "own.safetensors", model)
    fields, tensors = read_safetensors(path)
    for name in ("settings", "labels"):
        del fields[DETECTOR_KEY][name]
    write_tensors(path, tensors, fields)
    again = load_detector(str(path))
    assert settings_of(again) == settings_of(model) and open_weights(path).described is not None
    assert type(again.roi_heads.box_roi_pool) is MultiScaleRoIAlign

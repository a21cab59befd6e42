"""The graph does what the detector does, in both stacks, with nothing changed in it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import detection
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import MultiScaleRoIAlign

from norton_det.deploy.graph import DetectorGraph, decode, to_graph
from norton_det.models.stacks import stack_of
from norton_det.utils.errors import InputError

from .conftest import build_torchvision


def native(detector: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the detector itself finds in an image (3, H, W) in 0..255 at that size, masks and heat maps raw."""
    with torch.inference_mode():
        if stack_of(detector).name == "detectron2":
            found = detector.inference([{"image": pixels}], do_postprocess=False)[0]
            extra = {"masks": "pred_masks", "heatmaps": "pred_keypoint_heatmaps"}
            result = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "labels": found.pred_classes}
            return result | {name: found.get(field) for name, field in extra.items() if found.has(field)}
        images = detector.transform([pixels / 255])[0]
        features = detector.backbone(images.tensors)
        proposals, _ = detector.rpn(images, features)
        found = detector.roi_heads(features, proposals, images.image_sizes)[0][0]
        if detector.roi_heads.has_keypoint():
            heads = detector.roi_heads
            pooled = heads.keypoint_roi_pool(features, [found["boxes"]], images.image_sizes)
            found["heatmaps"] = heads.keypoint_predictor(heads.keypoint_head(pooled))
        return found


@pytest.mark.parametrize("size", [(96, 128), (96, 157)])
def test_equals_the_detector(detector, size):
    pixels = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(2)).float()
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    graph = to_graph(detector)
    with torch.inference_mode():
        found = dict(zip(graph.outputs, graph(pixels[None]), strict=True))
    expected = native(detector, pixels)
    assert len(expected["boxes"]) > 3
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-3, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())


def test_nothing_found(detector):
    graph = to_graph(copy.deepcopy(detector))
    graph.box_rule = graph.box_rule.__class__(**(vars(graph.box_rule) | {"score": 1.0}))
    with torch.inference_mode():
        found = graph(torch.zeros(1, 3, 96, 96))
    assert [len(part) for part in found] == [0] * len(graph.outputs) and found[0].shape == (0, 4)


def test_small_levels_are_filled_up():
    detector = build_torchvision("faster", rpn_pre_nms_top_n_test=500, rpn_post_nms_top_n_test=400)
    pixels = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0)) * 255
    with torch.inference_mode():
        found = to_graph(detector)(pixels[None])
    torch.testing.assert_close(found[0], native(detector, pixels)["boxes"], atol=2e-3, rtol=1e-4)


def test_a_least_objectness():
    detector = build_torchvision("faster", rpn_score_thresh=0.55)
    pixels = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0)) * 255
    expected = native(detector, pixels)["scores"]
    with torch.inference_mode():
        torch.testing.assert_close(to_graph(detector)(pixels[None])[1], expected, atol=1e-4, rtol=1e-3)


def test_decode():
    boxes = torch.tensor([[10.0, 20, 30, 60]])
    torch.testing.assert_close(decode(torch.zeros(1, 4), boxes, (10, 10, 5, 5)), boxes)
    moved = decode(torch.tensor([[1.0, 0, 0, 0]]), boxes, (10, 10, 5, 5))
    torch.testing.assert_close(moved, boxes + torch.tensor([2.0, 0, 2, 0]))


@settings(max_examples=settings.default.max_examples // 2)
@given(
    st.lists(st.tuples(*[st.floats(-30, 30, width=32)] * 4), min_size=1, max_size=5),
    st.lists(st.floats(-3, 9, width=32), min_size=4, max_size=4),
    st.sampled_from([(10.0, 10.0, 5.0, 5.0), (1.0, 1.0, 1.0, 1.0), (20.0, 20.0, 10.0, 10.0)]),
)
def test_decode_is_the_stacks_own(corners, deltas, weights):
    """Also where the logarithm of a size is clipped, and of boxes without an area."""
    x, y, width, height = torch.tensor(corners).abs().unbind(1)
    boxes = torch.stack([x, y, x + width, y + height], 1)
    moves = torch.tensor(weights) * torch.tensor(deltas).expand(len(boxes), 4)
    decoded = decode(moves, boxes, weights)
    torch.testing.assert_close(decoded, BoxCoder(weights).decode_single(moves, boxes), rtol=1e-4, atol=1e-3)
    transform = pytest.importorskip("detectron2.modeling.box_regression").Box2BoxTransform(weights)
    torch.testing.assert_close(decoded, transform.apply_deltas(moves, boxes), rtol=1e-4, atol=1e-3)


def test_refuses(faster):
    with pytest.raises(InputError, match="expected an R-CNN of Detectron2 or torchvision, got Linear"):
        to_graph(nn.Linear(2, 2))
    other = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(InputError, match="got RetinaNet"):
        to_graph(other)
    odd = copy.deepcopy(faster)
    odd.roi_heads.box_roi_pool = nn.Identity().eval()
    with pytest.raises(InputError, match="box_roi_pool: expected MultiScaleRoIAlign, got Identity"):
        to_graph(odd)
    assert isinstance(faster.roi_heads.box_roi_pool, MultiScaleRoIAlign) and isinstance(to_graph(faster), DetectorGraph)

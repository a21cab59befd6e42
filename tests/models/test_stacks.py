"""The contract of a detection stack, held by every implementation: signatures first, then what each method does."""

import copy
import inspect
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from norton_det.deploy import Detections, Predictor, to_graph
from norton_det.models.complexity import count_complexity
from norton_det.models.description import NetworkInfo
from norton_det.models.rcnn import RCNNParts
from norton_det.models.spec import CompressionSpec
from norton_det.models.stacks import (
    HEADS,
    STACKS,
    DetectionStack,
    ImageBatch,
    is_detector,
    stack_named,
    stack_of,
)
from norton_det.utils.errors import InputError
from tests.deploy.conftest import BUILD, waves

METHODS = sorted(name for name, value in vars(DetectionStack).items() if callable(value) and name[0] != "_")
FEW = 12  # regions of an image


@pytest.fixture(scope="module", params=STACKS)
def stack(request) -> DetectionStack:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return stack_named(request.param)


@pytest.fixture(scope="module")
def mask(stack) -> nn.Module:
    """A Mask R-CNN of the stack."""
    return BUILD[stack.name]("mask")


@pytest.fixture(scope="module")
def keypoint(stack) -> nn.Module:
    """A Keypoint R-CNN of the stack."""
    return BUILD[stack.name]("keypoint")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def same_call(expected: inspect.Signature, got: inspect.Signature) -> bool:
    """Whether whatever calls the one may call the other: names, kinds and defaults of the arguments are the same."""
    one, other = (
        [(parameter.name, parameter.kind, parameter.default) for parameter in signature.parameters.values()]
        for signature in (expected, got)
    )
    return one == other


@pytest.mark.parametrize("method", METHODS)
def test_signatures(stack, method):
    expected, got = (inspect.signature(getattr(cls, method)) for cls in (DetectionStack, type(stack)))
    assert same_call(expected, got), f"{type(stack).__name__}.{method}: expected {expected}, got {got}"


def test_a_stack_is_what_the_contract_says_and_no_more(stack):
    assert len(METHODS) > 25 and stack.name in STACKS and stack.title.lower() == stack.name
    assert not type(stack).__abstractmethods__ and not vars(stack)  # nothing is left out, and there is no state
    public = {name for name in vars(type(stack)) if not name.startswith("_")}
    assert public <= {*METHODS, "name", "title", "first_label"}


def test_an_incomplete_or_differing_stack_is_noticed():
    class Incomplete(DetectionStack):
        name, title = "torchvision", "torchvision"

        def propose(self, detector, features, batch):  # type: ignore[override]
            return features

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()
    signatures = (inspect.signature(cls.propose) for cls in (DetectionStack, Incomplete))
    assert not same_call(*signatures)


def test_detectors_are_told_by_their_stack(stack, mask):
    assert is_detector(mask) and stack_of(mask) is stack
    other = next(name for name in STACKS if name != stack.name)
    foreign = type("Foreign", (nn.Module,), {"roi_heads": None, "rpn": None, "__module__": f"{other}_extras.models"})
    for model in (nn.Linear(2, 2), mask.backbone, foreign()):
        assert not is_detector(model)
        with pytest.raises(InputError, match="expected an R-CNN of Detectron2 or torchvision, got"):
            stack_of(model)


def test_names_and_missing_stacks(monkeypatch):
    with pytest.raises(InputError, match="stack: expected detectron2 or torchvision, got 'mmdet'; use one of them"):
        stack_named("mmdet")
    for name, place in STACKS.items():
        monkeypatch.setitem(sys.modules, f"norton_det.{place.partition(':')[0]}", None)
        with pytest.raises(InputError, match=r"expected \S+ to be installed, found none; run make setup"):
            stack_named.__wrapped__(name)


def test_images_and_preprocessing(stack, mask):
    image = stack.noise_image((3, 90, 130))
    assert stack.check_image(image) == ""
    for broken in (torch.rand(1, 90, 130), "picture.png", {"image": torch.rand(90, 130, 3)}):
        assert stack.check_image(broken).count(", got ") == 1
    pixels = image["image"] if isinstance(image, dict) else 255 * image
    assert pixels.shape == (3, 90, 130) and 0 <= float(pixels.min()) < 10 and 245 < float(pixels.max()) <= 255
    again = stack.noise_image((3, 90, 130))
    assert torch.equal(again["image"] if isinstance(again, dict) else 255 * again, pixels)

    batch = stack.preprocess(mask, [image, stack.noise_image((3, 60, 90))])
    divisor = stack.size_divisor(mask)
    assert divisor == 32 and batch.pixels.shape[:2] == (2, 3) and len(batch.sizes) == 2
    assert all(side % divisor == 0 for side in batch.pixels.shape[2:])
    preprocessing = stack.preprocessing_of(mask)
    batch = stack.preprocess(mask, [image])
    height, width = batch.sizes[0]
    settings = stack.test_settings(mask)
    own_sizes = stack.name == "torchvision"  # Detectron2's detectors are given images that are resized already
    resized = stack.resize(pixels, settings.min_size, settings.max_size) if own_sizes else pixels
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close(batch.pixels[0, :, :height, :width], (resized - mean) / std, atol=1e-4, rtol=1e-4)


def test_steps_of_an_inference_give_what_the_detector_gives(stack, mask, keypoint):
    for detector, extra in ((mask, "mask"), (keypoint, "keypoint")):
        assert stack.heads_of(detector) == ("box", extra) and set(stack.heads_of(detector)) < set(HEADS)
        batch, features = stack.image_features(detector, [stack.noise_image((3, 96, 128))])
        again = stack.feature_maps(detector, batch.pixels)
        assert list(again) == list(features) and all(torch.equal(again[name], features[name]) for name in features)
        logits, deltas = stack.rpn_outputs(detector, features)
        assert [level.shape[1] * 4 for level in logits] == [level.shape[1] for level in deltas]
        assert [level.shape[2:] for level in logits] == [maps.shape[2:] for maps in features.values()]
        proposals = stack.propose(detector, batch, features)
        assert FEW < len(proposals) <= stack.test_settings(detector).proposals and proposals.shape[1] == 4
        height, width = batch.sizes[0]
        limits = torch.tensor([width, height, width, height])
        assert (proposals >= 0).all() and (proposals <= limits).all()

        boxes = stack.detect_boxes(detector, batch, features, proposals)
        assert len(boxes) and boxes.shape[1] == 4 and (boxes[:, 2:] > boxes[:, :2]).all()
        for head in stack.heads_of(detector):
            maps, side = stack.pooling_of(detector, head)
            pooled = stack.pool(detector, head, batch, features, proposals[:FEW])
            assert set(maps) <= set(features) and pooled.shape == (FEW, features[maps[0]].shape[1], *side)
            outputs = stack.head_outputs(detector, head, pooled)
            assert all(isinstance(output, Tensor) and len(output) == FEW for output in outputs)
            assert len(outputs) == (2 if head == "box" else 1)
            assert len(stack.head_layers(detector, head)(pooled)) == FEW


def test_a_box_head_gives_the_boxes_of_the_graph(stack, mask):
    """The steps of compression and search, and the graph of the deployment: the same boxes of the same pixels."""
    graph = to_graph(mask)
    pixels = 255 * torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(3))
    batch = ImageBatch.of((pixels - graph.mean) / graph.std)
    features = stack.feature_maps(mask, batch.pixels)
    proposals = stack.propose(mask, batch, features)
    limits = torch.tensor([128.0, 96.0, 128.0, 96.0])
    maps = list(graph.backbone(batch.pixels))
    torch.testing.assert_close(graph.propose(maps, limits, (96, 128)), proposals, atol=1e-3, rtol=1e-4)
    boxes = stack.detect_boxes(mask, batch, features, proposals)
    torch.testing.assert_close(graph.detect(maps, proposals, limits)[0], boxes, atol=2e-3, rtol=1e-4)


def test_parts_share_the_layers(stack, mask, keypoint):
    for detector, extra in ((mask, "mask"), (keypoint, "keypoint")):
        parts = stack.parts_of(detector)
        assert isinstance(parts, RCNNParts) and parts.preprocessing == stack.preprocessing_of(detector)
        assert (parts.mask is not None, parts.keypoint is not None) == (extra == "mask", extra == "keypoint")
        assert parts.divisor == stack.size_divisor(detector)
        owned = {id(parameter) for parameter in detector.parameters()}
        heads = [head.layers for head in (parts.box, parts.mask, parts.keypoint) if head is not None]
        taken = {id(p) for layers in (parts.backbone, parts.rpn_head, *heads) for p in layers.parameters()}
        assert taken == owned  # nothing is copied, nothing left behind


def test_pictures(stack, mask, keypoint):
    picture = waves()
    settings = stack.test_settings(mask)
    assert 0 < settings.min_size <= settings.max_size
    color = slice(None, None, -1 if stack.preprocessing_of(mask).color == "BGR" else 1)
    fields = stack.detect_picture(mask, picture[:, :, color], 96, 160)
    expected = Predictor(mask, min_size=96, max_size=160)(picture)
    assert set(fields) == {"boxes", "scores", "labels", "masks"} and len(expected) > 3
    ours = Detections(**fields)
    assert len(ours) == len(expected) and np.array_equal(ours.labels, expected.labels)
    np.testing.assert_allclose(ours.boxes, expected.boxes, atol=0.05)
    assert ours.masks.shape == (len(ours), *picture.shape[:2]) and ours.masks.dtype == bool
    assert stack.detect_picture(keypoint, picture[:, :, color], 96, 160)["keypoints"].shape[2] == 3
    assert stack.native_call(mask, picture)() is not None
    assert all(module in set(mask.modules()) for module in stack.native_parts(mask).values())
    assert set(stack.native_parts(mask)) == {"backbone", "rpn", "roi_heads"}


def test_resizing(stack):
    image = 255 * torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(5)).round(decimals=2)
    assert stack.resize(image, 0, 0) is image and stack.resize(image, 40, 60) is image
    assert stack.resize(image, 80, 200).shape == (3, 80, 120) and stack.resize(image, 80, 90).shape == (3, 60, 90)
    with pytest.raises(InputError, match="expected a short side that is left at a long one of 20, got 4000x1; crop it"):
        stack.resize(torch.zeros(3, 1, 4000), 10, 20)


def test_masks_and_keypoints_of_a_picture(stack):
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    mask = stack.paste_masks(torch.ones(1, 1, 28, 28), boxes, 80, 100)
    assert mask.shape == (1, 80, 100) and mask.dtype == torch.bool
    rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
    edges = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    assert all(abs(edge - side) <= 1 for edge, side in zip(edges, boxes[0].tolist(), strict=True))
    heatmaps = torch.full((1, 2, 56, 56), -5.0)
    heatmaps[0, 0, 28, 28], heatmaps[0, 1, 0, 55] = 5.0, 5.0
    points = stack.keypoints_from(heatmaps, boxes)
    assert points.shape == (1, 2, 3)
    torch.testing.assert_close(points[0, :, :2], torch.tensor([[20.0, 40.0], [30.0, 20.0]]), atol=1.0, rtol=0)


def test_a_resnet_of_this_package(stack, mask):
    detector = copy.deepcopy(mask)
    spec = CompressionSpec.preset("norton-78", "resnet50")
    info = NetworkInfo(spec, stack.preprocessing_of(detector), 0)
    old = stack.resnet_of(detector)
    for name, parameter in old.named_parameters():
        parameter.requires_grad_(not name.startswith(("stem", "conv1", "bn1", "res2", "layer1")))
    stack.replace_resnet(detector, info)
    new = stack.resnet_of(detector)
    assert new is not old and stack.has_norton_resnet(detector) and not new.training
    frozen, expected = (
        {name.partition(".")[0] for name, parameter in resnet.named_parameters() if not parameter.requires_grad}
        for resnet in (new, old)
    )
    assert {"conv1", "layer1"} <= frozen == expected
    assert sum(p.numel() for p in new.parameters()) < sum(p.numel() for p in old.parameters()) / 3
    stack.attach_info(detector, info)
    detector.backbone = nn.Identity()
    with pytest.raises(InputError, match=r"backbone: expected an? .*FPN, got Identity"):
        stack.replace_resnet(detector, info)


def test_training(stack, mask, keypoint):
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(4))
    boxes = [torch.tensor([[10.0, 10, 60, 70], [40, 20, 100, 90]]), torch.tensor([[5.0, 5, 50, 50]])]
    for detector, extra in ((mask, "loss_mask"), (keypoint, "loss_keypoint")):
        call = stack.training_call(copy.deepcopy(detector).train(), images, boxes)
        losses = call()
        assert extra in losses and len(losses) == 5 and all(loss.isfinite() for loss in losses.values())


def test_complexity_goes_by_the_contract(stack, mask):
    counted = count_complexity(mask, (3, 64, 96), proposals=10, detections=5)
    assert list(counted.parts) == ["backbone", "fpn", "rpn", "box_head", "mask_head"]
    assert sum(counted.parts.values()) == counted.macs


def test_loading(stack, tmp_path):
    """A detector's own state, written and read back; what the file is not is said in one line."""
    detector = BUILD[stack.name]("faster")
    path = str(tmp_path / "detector.pth")
    state = detector.state_dict()
    torch.save({"model": state} if stack.name == "detectron2" else state, path)
    config = "dense_faster_rcnn.yaml" if stack.name == "detectron2" else None
    opts = ("MODEL.DEVICE", "cpu") if config else ()
    for given in ((config, opts), (None, ())):
        loaded = stack.load_detector(path, *given)
        assert not loaded.training and stack_of(loaded) is stack
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError):
        stack.load_detector(path, config, opts)
    if config is None:
        with pytest.raises(InputError, match="expected no config beside weights of"):
            stack.load_detector(path, "dense_faster_rcnn.yaml")

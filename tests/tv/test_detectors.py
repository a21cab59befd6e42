"""torchvision detectors on compressed backbones: torchvision's own network when dense, trainable when not."""

import inspect
import json

import pytest
import torch
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from norton_det.checkpoint.load import load_checkpoint
from norton_det.checkpoint.save import save_checkpoint
from norton_det.checkpoint.tensor_file import write_tensors
from norton_det.models.description import NetworkInfo
from norton_det.models.preprocessing import MSRA
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.tv import (
    fasterrcnn_norton_resnet50_fpn,
    keypointrcnn_norton_resnet50_fpn,
    maskrcnn_norton_resnet50_fpn,
    read_detector_info,
    save_detector,
)
from norton_det.tv.weights import DETECTOR_KEY
from norton_det.utils.errors import InputError

# small pictures, few regions: the keypoint head alone takes 3.5 G MACs a region
SMALL = {
    "min_size": 64,
    "max_size": 96,
    "rpn_post_nms_top_n_train": 40,
    "rpn_post_nms_top_n_test": 40,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 4,
}
# ours -> torchvision's builder, and what a detection holds beside boxes, labels and scores
BUILDERS = {
    fasterrcnn_norton_resnet50_fpn: (detection.fasterrcnn_resnet50_fpn, {}),
    maskrcnn_norton_resnet50_fpn: (detection.maskrcnn_resnet50_fpn, {"masks"}),
    keypointrcnn_norton_resnet50_fpn: (detection.keypointrcnn_resnet50_fpn, {"keypoints", "keypoints_scores"}),
}
every_builder = pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)


def images(count: int = 2) -> list[torch.Tensor]:
    return list(torch.rand(count, 3, 64, 80, generator=torch.Generator().manual_seed(3)))


def targets(count: int = 2) -> list[dict[str, torch.Tensor]]:
    """Two objects an image with all that any of the three detectors learns from."""
    boxes = torch.tensor([[4.0, 6.0, 44.0, 50.0], [30.0, 10.0, 70.0, 60.0]])
    masks = torch.zeros(2, 64, 80, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    keypoints = torch.cat([centres, torch.full((2, 1), 2.0)], 1)[:, None].repeat(1, 17, 1)  # (2, 17, 3)
    fields = {"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64), "masks": masks, "keypoints": keypoints}
    return [dict(fields) for _ in range(count)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A norton-78 checkpoint whose normalisations are not the identity."""
    generator = torch.Generator().manual_seed(1)
    model = NortonResNet(CompressionSpec.preset("norton-78"), num_classes=10)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "norton-78.safetensors", model)


@every_builder
def test_dense_is_torchvisions_network(build):
    theirs = BUILDERS[build][0](weights=None, weights_backbone=None, box_score_thresh=0.0, **SMALL).eval()
    ours = build(spec="dense", box_score_thresh=0.0, **SMALL).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert (ours.transform.image_mean, ours.transform.image_std) == (
        theirs.transform.image_mean,
        theirs.transform.image_std,
    )
    with torch.no_grad():
        found, expected = ours(images(1)), theirs(images(1))
    assert len(expected[0]["boxes"]) > 0
    assert found[0].keys() == expected[0].keys() == {"boxes", "labels", "scores", *BUILDERS[build][1]}
    for name, value in expected[0].items():
        assert found[0][name].dtype == value.dtype
        torch.testing.assert_close(found[0][name], value, rtol=0, atol=0)


@every_builder
def test_arguments_are_torchvisions(build):
    theirs = set(inspect.signature(BUILDERS[build][0]).parameters) - {"progress"}  # nothing is downloaded here
    assert set(inspect.signature(build).parameters) == theirs | {"spec"}
    with pytest.raises(InputError, match=r"min_sise: no such argument of \w+ R-CNN; the arguments are .*min_size"):
        build(min_sise=64)


@every_builder
def test_one_training_step(build):
    torch.manual_seed(0)
    # every anchor is sampled, so that every level gets its share; the objects' boxes are among the proposals
    model = build(rpn_batch_size_per_image=4000, **SMALL).train()
    losses = model(images(), targets())
    assert losses.keys() >= {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert len(losses) == 4 + bool(BUILDERS[build][1])
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name  # a fresh network trains whole
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    before = model.backbone.body.layer4[2].conv2.vertical.weight.clone()
    optimizer.step()
    assert not torch.equal(before, model.backbone.body.layer4[2].conv2.vertical.weight)


@every_builder
def test_images_without_objects(build):
    model = build(num_classes=3, **SMALL)
    empty = {name: value[:0] for name, value in targets(1)[0].items()}
    losses = model.train()(images(), [targets(1)[0], empty])
    assert all(torch.isfinite(loss) for loss in losses.values())
    model.roi_heads.score_thresh = 1.0  # no detection passes
    with torch.no_grad():
        found = model.eval()(images(1))[0]
    assert found["boxes"].shape == (0, 4) and found["labels"].shape == found["scores"].shape == (0,)
    shapes = {"masks": (0, 1, 64, 80), "keypoints": (0, 17, 3), "keypoints_scores": (0, 17)}
    for name in BUILDERS[build][1]:
        assert found[name].shape == shapes[name]


@pytest.mark.parametrize("preset", ["norton-43", "norton-64", "norton-78"])
def test_feature_maps(preset):
    backbone = fasterrcnn_norton_resnet50_fpn(spec=preset).backbone.eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 128, 64))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    for stride, features in zip((4, 8, 16, 32, 64), maps.values(), strict=True):
        assert features.shape == (1, 256, 128 // stride, 64 // stride)


def test_backbone_checkpoint(checkpoint):
    model = fasterrcnn_norton_resnet50_fpn(weights_backbone=checkpoint, num_classes=5)
    assert model.norton_info.backbone.spec == CompressionSpec.preset("norton-78")
    body = model.backbone.body
    assert any(isinstance(module, FrozenBatchNorm2d) for module in body.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in body.modules())
    trained = {name.split(".")[0] for name, parameter in body.named_parameters() if parameter.requires_grad}
    frozen = {name.split(".")[0] for name, parameter in body.named_parameters() if not parameter.requires_grad}
    assert (trained, frozen) == ({"layer2", "layer3", "layer4"}, {"conv1", "layer1"})
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = load_checkpoint(checkpoint).forward_features(image)["res4"]
        found = body(image)["2"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layers", "first"), [(0, "fpn"), (1, "layer4"), (4, "layer1"), (5, "conv1")])
def test_trainable_layers(checkpoint, layers, first):
    model = fasterrcnn_norton_resnet50_fpn(weights_backbone=checkpoint, trainable_backbone_layers=layers)
    trained = [name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]
    assert trained[0].split(".")[first != "fpn"] == first


def test_trainable_layers_without_weights():
    with pytest.warns(UserWarning, match="all layers train"):
        model = fasterrcnn_norton_resnet50_fpn(trainable_backbone_layers=2)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_bgr_weights_become_rgb(checkpoint):
    """The same network on the same picture: BGR pixels with mean 103.53.. and RGB in 0..1 give equal features."""
    source = NortonResNet(CompressionSpec.preset("norton-78"), num_classes=0, stride_in_1x1=True).eval()
    source.preprocessing = MSRA
    model = fasterrcnn_norton_resnet50_fpn(weights_backbone=source, **SMALL).eval()
    picture = images(1)[0]
    pixels = 255 * picture.flip(0)  # (3, H, W), BGR
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MSRA.mean, MSRA.std))
    with torch.no_grad():
        expected = source.forward_features(((pixels - mean) / std)[None])["res3"]
        found = model.backbone.body(model.transform.normalize(picture)[None])["1"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert model.norton_info.backbone.preprocessing.color == "RGB"
    assert model.norton_info.backbone.stride_in_1x1
    assert source.preprocessing == MSRA  # the source is untouched


@every_builder
def test_save_and_load(build, tmp_path):
    extra = {"num_keypoints": 5} if build is keypointrcnn_norton_resnet50_fpn else {}
    options = {"image_mean": [0.4, 0.5, 0.6], "box_score_thresh": 0.0, **SMALL}
    model = build(spec="norton-64", num_classes=3, **extra, **options).eval()
    path = save_detector(tmp_path / "detector.safetensors", model)
    again = build(weights=path, box_score_thresh=0.0, **SMALL).eval()
    assert again.norton_info == model.norton_info == read_detector_info(path)
    assert again.transform.image_mean == [0.4, 0.5, 0.6]
    with torch.no_grad():
        expected, found = model(images(1))[0], again(images(1))[0]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-3)
    assert len(found["boxes"]) > 0
    assert list(tmp_path.iterdir()) == [path]


def test_real_weights(shared, real_weights, tmp_path):
    """A trained dense backbone keeps its own preprocessing and sees a photograph as the classifier does."""
    model = NortonResNet(CompressionSpec.dense(), num_classes=10)
    model.load_state_dict(real_weights, strict=False)
    path = save_checkpoint(tmp_path / "dense.safetensors", model)
    detector = maskrcnn_norton_resnet50_fpn(weights_backbone=path, num_classes=4, **SMALL)
    assert detector.transform.image_mean == [0.485, 0.456, 0.406]
    for name, tensor in detector.backbone.body.state_dict().items():
        assert torch.equal(tensor, real_weights[name]), name


def test_contradictions_are_told(checkpoint, tmp_path):
    detector = save_detector(tmp_path / "faster.safetensors", fasterrcnn_norton_resnet50_fpn(num_classes=3))
    tv_weights = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    cases = [
        ({"spec": "norton-64", "weights_backbone": checkpoint}, "spec: expected that of the weights, norton-78"),
        ({"spec": "dense", "weights": detector}, "spec: expected that of the weights, norton-78"),
        ({"spec": "norton-65"}, "preset: expected one of dense"),
        ({"spec": 78}, "spec: expected a preset's name or a CompressionSpec, got int"),
        ({"weights": detector, "num_classes": 4}, "num_classes: expected 3, that of the weights, got 4"),
        ({"weights": checkpoint}, "expected a detector of norton_det.tv, got other weights; give a backbone as"),
        ({"weights": tmp_path / "none.safetensors"}, "found no such file"),
        ({"weights": tv_weights}, "weights: expected the path of a file of save_detector"),
        ({"weights_backbone": detector}, "expected a ResNet's checkpoint, got a detector's"),
        ({"weights_backbone": tv_weights}, "weights_backbone: expected the path of a norton checkpoint"),
        ({"weights_backbone": checkpoint, "image_mean": [0.0, 0.0, 0.0]}, "image_mean: expected"),
        ({"weights_backbone": checkpoint, "trainable_backbone_layers": 6}, "trainable_backbone_layers: expected 0"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            fasterrcnn_norton_resnet50_fpn(**arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected a mask detector, got faster"):
        maskrcnn_norton_resnet50_fpn(weights=detector)
    with pytest.raises(InputError, match="expected an R-CNN of Detectron2 or torchvision, got Linear"):
        save_detector(tmp_path / "linear.safetensors", torch.nn.Linear(1, 1))


def test_same_spec_may_be_repeated(checkpoint):
    fasterrcnn_norton_resnet50_fpn(spec="norton-78", weights_backbone=checkpoint)


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "[]",
        '{"kind": "faster"}',
        '{"kind": "panoptic", "num_classes": 2, "num_keypoints": null}',
        '{"kind": "faster", "num_classes": 0, "num_keypoints": null}',
        '{"kind": "keypoint", "num_classes": 2, "num_keypoints": null}',
        '{"kind": "mask", "num_classes": true, "num_keypoints": null}',
    ],
)
def test_damaged_metadata(text, tmp_path):
    backbone = NetworkInfo(CompressionSpec.preset("norton-78"), num_classes=0)
    file = tmp_path / "detector.safetensors"
    write_tensors(file, {"x": torch.zeros(1)}, backbone.to_fields() | {DETECTOR_KEY: json.loads(text)})
    with pytest.raises(InputError, match=r"detector\.safetensors: ") as caught:
        fasterrcnn_norton_resnet50_fpn(weights=file)
    assert "\n" not in str(caught.value)

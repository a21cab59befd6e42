"""Whole torchvision detectors compressed: what is exact stays exact, files carry their layout, nothing is changed."""

import copy

import pytest
import torch
from torchvision.models import detection

from norton_det.compression.detector import compress_detector
from norton_det.decomposition.cp import Factors, reconstruct
from norton_det.models.fuse import fuse
from norton_det.models.layers import CPConv2d, LowRankLinear
from norton_det.models.preprocessing import Preprocessing
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.tv import (
    fasterrcnn_norton_resnet50_fpn,
    maskrcnn_norton_resnet50_fpn,
    read_detector_info,
    save_detector,
)
from norton_det.tv.detectors import load_torchvision_detector
from norton_det.utils.errors import InputError

from .test_detectors import BUILDERS, SMALL, images, targets

HALF = CompressionSpec.parse(None, "[0.]+[0.5]*19")  # no decomposition: quick


@pytest.fixture(scope="module")
def faster():
    """torchvision's own, with statistics that are not the identity."""
    torch.manual_seed(0)
    model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, box_score_thresh=0.0, **SMALL).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def result(faster):
    return compress_detector(faster, HALF, box_head_rank=32)


def test_report(faster, result):
    report = result.report
    assert [(layer.name, layer.rank) for layer in report.layers] == [
        *((f"backbone.fpn.layer_blocks.{level}.0", 1) for level in range(4)),
        ("rpn.head.conv.0.0", 1),
        ("roi_heads.box_head.fc6", 32),
        ("roi_heads.box_head.fc7", 32),
    ]
    assert report.params == tuple(sum(p.numel() for p in model.parameters()) for model in (faster, result.model))
    assert report.macs[1] < report.macs[0] / 3 and report.backbone.spec == HALF and report.dense == {}
    assert 0 < report.layers[0].nmse < 1 and report.layers[0].params == (590080, 256 * (256 + 6) + 256)
    text = report.table()
    assert "roi_heads.box_head.fc6" in text and text.splitlines()[-1].startswith("detector: MACs 134.38 -> ")
    assert report.to_dict()["layers"][0]["part"] == "neck"


def test_the_input_is_untouched(faster):
    before = copy.deepcopy(faster.state_dict())
    compress_detector(faster, HALF, neck_rank=None, box_head_rank=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in faster.state_dict().items())
    assert find_kinds(faster) == set()


def find_kinds(model):
    return {type(module) for module in model.modules()} & {CPConv2d, LowRankLinear}


def test_file_carries_the_layout(result, tmp_path):
    path = save_detector(tmp_path / "small.safetensors", result.model)
    assert read_detector_info(path).backbone.layout == {layer.name: layer.rank for layer in result.report.layers}
    again = fasterrcnn_norton_resnet50_fpn(weights=path, box_score_thresh=0.0, **SMALL).eval()
    with torch.no_grad():
        for found, expected in zip(again(images()), result.model(images()), strict=True):
            assert all(torch.equal(found[key], expected[key]) for key in expected)
    twice = compress_detector(again, None, neck_rank=None, head_rank=None, box_head_rank=None)
    assert twice.report.backbone is None and twice.report.layers == ()  # as it is
    with pytest.raises(InputError, match="expected a dense ResNet, got"):
        compress_detector(again, CompressionSpec.preset("norton-78"))


def test_deploy_form(result):
    with torch.no_grad():
        for found, expected in zip(fuse(result.model)(images()), result.model(images()), strict=True):
            torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-5)


def test_what_has_the_rank_already_is_kept(faster, generator):
    """Layers of CP rank 1 and of matrix rank 8 give the same detections after the compression to those."""
    planted = copy.deepcopy(faster)
    with torch.no_grad():
        for module in (
            *(planted.backbone.fpn.layer_blocks[level][0] for level in range(4)),
            planted.rpn.head.conv[0][0],
        ):
            parts = [torch.randn(256, size, 1, generator=generator) for size in (256, 3, 3)]
            module.weight.copy_(0.02 * reconstruct(Factors(*parts)))
        for module in (planted.roi_heads.box_head.fc6, planted.roi_heads.box_head.fc7):
            left, right = (torch.randn(size, 8, generator=generator) for size in module.weight.shape)
            module.weight.copy_(0.01 * left @ right.T)
    small = compress_detector(planted, None, box_head_rank=8)
    assert max(layer.nmse for layer in small.report.layers) < 1e-6
    with torch.no_grad():
        for found, expected in zip(small.model(images()), planted(images()), strict=True):
            torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-3, atol=1e-2)
            torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-3, atol=1e-4)


def test_it_trains(result):
    model = copy.deepcopy(result.model).train()
    sum(model(images(), targets()).values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert float(gradients["roi_heads.box_head.fc6.first.weight"].abs().sum()) > 0


def test_frozen_parts_stay_frozen():
    dense = fasterrcnn_norton_resnet50_fpn(spec="dense", **SMALL)
    for name, parameter in dense.backbone.body.named_parameters():
        parameter.requires_grad_(name.startswith(("layer3", "layer4")))
    small = compress_detector(dense, HALF, neck_rank=None, box_head_rank=None).model
    trained = {name.partition(".")[0] for name, p in small.backbone.body.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4"}


def test_mask_head_by_single_ranks(tmp_path):
    build = maskrcnn_norton_resnet50_fpn
    dense = BUILDERS[build][0](weights=None, weights_backbone=None, **SMALL).eval()
    single = {"roi_heads.mask_head.0.0": 2, "roi_heads.mask_head.3.0": None}
    result = compress_detector(dense, HALF, neck_rank=None, box_head_rank=None, layout=single)
    ranks = {layer.name: layer.rank for layer in result.report.layers}
    assert ranks == {"roi_heads.mask_head.0.0": 2, "roi_heads.mask_head.1.0": 1, "roi_heads.mask_head.2.0": 1}
    assert result.report.dense["roi_heads.mask_head.3.0"] == "as asked"
    again = build(weights=save_detector(tmp_path / "mask.safetensors", result.model), **SMALL).eval()
    assert find_kinds(again) == {CPConv2d} and read_detector_info(tmp_path / "mask.safetensors").kind == "mask"


def relative_error(found, expected):
    return float((found - expected).square().sum() / (expected - expected.mean()).square().sum())


def test_calibration_fits_outputs_of_images_it_has_not_seen(generator):
    """Smooth pictures through a random Mask R-CNN: every kind of layer comes closer to the dense one's outputs."""
    build = maskrcnn_norton_resnet50_fpn
    torch.manual_seed(0)
    dense = BUILDERS[build][0](weights=None, weights_backbone=None, box_score_thresh=0.0, **SMALL).eval()
    coarse = torch.rand(10, 3, 4, 5, generator=generator)
    pictures = list(torch.nn.functional.interpolate(coarse, size=(64, 80), mode="bilinear").clamp(0, 1))
    before = copy.deepcopy(dense.state_dict())
    plain = compress_detector(dense, None, box_head_rank=8)
    fitted = compress_detector(dense, None, box_head_rank=8, calibration=pictures[:8])
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert [layer.error for layer in plain.report.layers] == [None] * 11
    assert all(0 <= layer.error < 0.9 for layer in fitted.report.layers), fitted.report.table()
    with torch.no_grad():
        images = dense.transform(pictures[8:])[0].tensors
        maps = [model.backbone(images) for model in (dense, plain.model, fitted.model)]
        for level in ("0", "1"):
            expected, *found = (features[level] for features in maps)
            assert relative_error(found[1], expected) < 0.7 * relative_error(found[0], expected), level


@pytest.mark.parametrize(
    ("images", "pattern"),
    [
        ([], "calibration: expected images, got none"),
        (torch.rand(2, 3, 64, 80), "calibration: expected a list of images, got Tensor"),
        ([{"image": torch.rand(3, 64, 80)}], "image 0: expected a float tensor .* got dict"),
        ([torch.rand(3, 64, 80), torch.rand(1, 64, 80)], r"image 1: expected a float tensor .* got .*\(1, 64, 80\)"),
        ([255 * torch.rand(3, 64, 80)], r"image 0: expected values in 0\.\.1, got"),
        ([torch.full((3, 64, 80), float("nan"))], "expected finite"),
    ],
)
def test_calibration_needs_sound_images(faster, images, pattern):
    with pytest.raises(InputError, match=pattern):
        compress_detector(faster, None, head_rank=None, box_head_rank=None, calibration=images)


def test_what_is_no_such_detector(faster):
    with pytest.raises(InputError, match="expected an R-CNN of Detectron2 or torchvision, got RetinaNet"):
        compress_detector(detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None), None)
    with pytest.raises(InputError, match=r"expected float32, got torch\.float64; call float\(\)"):
        compress_detector(copy.deepcopy(faster).double(), None)


def test_files_of_ours_are_read_back_as_they_are(tmp_path):
    """Not only the tensors: preprocessing and the place of the stride too."""
    resnet = NortonResNet(CompressionSpec.dense(), 0, stride_in_1x1=True)
    resnet.preprocessing = Preprocessing("RGB", (0.0,) * 3, (255.0,) * 3)
    path = save_detector(tmp_path / "own.safetensors", fasterrcnn_norton_resnet50_fpn(weights_backbone=resnet, **SMALL))
    again = compress_detector(load_torchvision_detector(path), None, neck_rank=None, box_head_rank=4).model
    info = read_detector_info(save_detector(tmp_path / "small.safetensors", again)).backbone
    assert info.stride_in_1x1 and info.preprocessing.close_to(resnet.preprocessing) and len(info.layout) == 2


def test_frozen_layers_stay_frozen(faster):
    frozen = copy.deepcopy(faster)
    frozen.rpn.requires_grad_(False)
    small = compress_detector(frozen, None, box_head_rank=None).model
    assert not any(parameter.requires_grad for parameter in small.rpn.parameters())
    assert all(parameter.requires_grad for parameter in small.backbone.fpn.parameters())

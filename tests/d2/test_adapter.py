"""Whole Detectron2 detectors compressed, saved, loaded, trained; ranks that a config asks for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.save import save_tensors
from norton_det.compression.detector import compress_detector
from norton_det.d2 import NortonCheckpointer, load_detector
from norton_det.d2.build import build_detector
from norton_det.d2.checkpoint import info_of_model
from norton_det.d2.initial_weights import compress_weights
from norton_det.models.factorize import factored_layer, find_layout
from norton_det.models.fuse import fuse
from norton_det.models.layers import CPConv2d, LowRankLinear
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError
from norton_det.utils.hooks import hooked

HALF = CompressionSpec.parse(None, "[0.]+[0.5]*19")  # no decomposition: quick
NECK = {f"backbone.fpn_output{level}": 1 for level in (2, 3, 4, 5)} | {"proposal_generator.rpn_head.conv": 1}
BOX = {"roi_heads.box_head.fc1": 16, "roi_heads.box_head.fc2": 16}


def picture() -> list[dict[str, torch.Tensor]]:
    return [{"image": 255 * torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))}]


@pytest.fixture(scope="module")
def own(config):
    """A detector with Detectron2's own ResNet."""
    torch.manual_seed(0)
    return build_model(config("dense_faster_rcnn.yaml", **{"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone"})).eval()


@pytest.fixture(scope="module")
def result(own):
    return compress_detector(own, HALF, box_head_rank=16)


def test_detectron2s_own_resnet(own, result):
    model = result.model
    assert find_layout(model) == NECK | BOX == {layer.name: layer.rank for layer in result.report.layers}
    assert model.backbone.bottom_up.spec == HALF and find_layout(own) == {}
    assert model.backbone.output_convs[0] is model.backbone.fpn_output5  # Detectron2 calls what is in the list
    assert isinstance(model.backbone.fpn_output5, CPConv2d) and isinstance(model.roi_heads.box_head.fc1, LowRankLinear)
    assert type(model.proposal_generator.rpn_head.conv.activation) is torch.nn.ReLU
    frozen = {name.partition(".")[0] for name, p in own.backbone.bottom_up.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}
    still = {name.partition(".")[0] for name, p in model.backbone.bottom_up.named_parameters() if not p.requires_grad}
    assert still == {"conv1", "layer1"}
    with torch.no_grad():
        assert len(model(picture())[0]["instances"]) <= 10


def test_without_compression_outputs_are_the_same(own):
    """Only the ResNet's class changes: Detectron2's own becomes ours, with its weights."""
    same = compress_detector(own, None, neck_rank=None, head_rank=None, box_head_rank=None)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = same.model.backbone(image), own.backbone(image)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-5) for name in expected)
    assert same.report.params[0] == same.report.params[1] and same.report.macs[0] == same.report.macs[1]


def test_deploy_form(result):
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    deploy = fuse(result.model)
    assert not any(isinstance(module, CPConv2d) for module in deploy.modules())
    with torch.no_grad():
        found, expected = (list(model.backbone(image).values()) for model in (deploy, result.model))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        for one, other in zip(
            *(model.proposal_generator.rpn_head(expected)[0] for model in (deploy, result.model)), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_deploy_form_of_detectron2s_resnet(own):
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    deploy = fuse(own)
    assert not any("Norm" in type(module).__name__ for module in deploy.modules())
    with torch.no_grad():
        for found, expected in zip(deploy.backbone(image).values(), own.backbone(image).values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_checkpoint_carries_the_layout(config, result, tmp_path):
    NortonCheckpointer(result.model, str(tmp_path)).save("small")
    file = tmp_path / "small.pth"
    assert open_weights(file).layout == NECK | BOX
    cfg = config(**{"MODEL.WEIGHTS": file, "MODEL.NORTON.BOX_HEAD_RANK": 3})  # the file's own layout comes first
    model = load_detector(cfg)
    assert find_layout(model) == NECK | BOX
    assert all(torch.equal(tensor, result.model.state_dict()[name]) for name, tensor in model.state_dict().items())
    again = compress_weights(cfg)
    assert again is cfg  # nothing left to compress


@pytest.mark.parametrize(("rank", "told"), [(None, ""), (16, ""), (8, "asks for NECK_RANK 1, BOX_HEAD_RANK 8, which")])
def test_other_ranks_than_those_of_the_weights_are_told(config, result, tmp_path, caplog, rank, told):
    path = tmp_path / "detector.safetensors"
    save_tensors(path, result.model.state_dict(), info_of_model(result.model))
    keys = {"MODEL.WEIGHTS": path, "MODEL.NORTON.NECK_RANK": rank and 1, "MODEL.NORTON.BOX_HEAD_RANK": rank}
    assert find_layout(build_detector(config("norton_faster_rcnn.yaml", **keys))) == NECK | BOX
    warnings = [record.getMessage() for record in caplog.records if "_RANK" in record.getMessage()]
    assert told in "".join(warnings) and bool(warnings) == bool(told)


def test_ranks_of_a_config_make_fresh_layers(config, norton_64):
    keys = {"MODEL.NORTON.NECK_RANK": 1, "MODEL.NORTON.HEAD_RANK": 2, "MODEL.NORTON.BOX_HEAD_RANK": 16}
    model = build_detector(config("norton_mask_rcnn.yaml", **keys, **{"MODEL.WEIGHTS": norton_64}))
    masks = {f"roi_heads.mask_head.mask_fcn{index}": 2 for index in range(1, 5)}
    assert find_layout(model) == NECK | BOX | masks
    NortonCheckpointer(model).load(str(norton_64))  # the backbone; what is around it starts anew
    with EventStorage():
        model.eval()(picture())


def test_a_trained_dense_detector_is_compressed_on_the_way(config, own, tmp_path):
    NortonCheckpointer(own, str(tmp_path)).save("dense")
    keys = {"MODEL.WEIGHTS": tmp_path / "dense.pth", "OUTPUT_DIR": tmp_path / "out", "MODEL.NORTON.PRESET": "dense"}
    cfg = config(**keys, **{"MODEL.NORTON.RATIOS": "[0.]+[0.5]*19", "MODEL.NORTON.BOX_HEAD_RANK": 16})
    given = compress_weights(cfg)
    assert (
        open_weights(given.MODEL.WEIGHTS).described.layout == BOX
        and Path(given.MODEL.WEIGHTS).parent == tmp_path / "out"
    )
    model = load_detector(given)
    assert torch.equal(model.backbone.fpn_output2.weight, own.backbone.fpn_output2.weight)
    expected = LowRankLinear.from_linear(own.roi_heads.box_head.fc1, 16)
    torch.testing.assert_close(model.roi_heads.box_head.fc1.to_weight(), expected.to_weight())


def test_without_fpn(config):
    model = build_model(config("norton_faster_rcnn.yaml"))
    model.backbone.bottom_up = torch.nn.Identity()
    with pytest.raises(InputError, match="expected ResNet-18, -34, -50, -101 or -152 weights"):
        compress_detector(model, HALF)


def test_calibration(own, generator):
    """Backbone, neck and heads are fitted; the error that is left is told for each layer."""
    pictures = [{"image": 255 * torch.rand(3, 64, 96, generator=generator)} for _ in range(4)]
    fitted = compress_detector(own, HALF, box_head_rank=16, calibration=pictures)
    errors = {layer.name: layer.error for layer in fitted.report.layers}
    around = [*NECK, *BOX]
    figures = [0.18456, 0.21316, 0.25265, 0.31233, 0.09534, 0.08361, 0.09690]  # of these weights and pictures
    assert [errors[name] for name in around] == pytest.approx(figures, rel=5e-3)
    assert set(fitted.report.backbone.errors) and "calibrate" in fitted.report.backbone.seconds
    with torch.no_grad():
        assert fitted.model(pictures[:1])[0]["instances"].scores.isfinite().all()


def smooth_pictures(generator, count: int = 6) -> list[dict[str, torch.Tensor]]:
    coarse = torch.rand(count, 3, 4, 6, generator=generator)
    return [{"image": 255 * part} for part in torch.nn.functional.interpolate(coarse, size=(64, 96), mode="bilinear")]


def output_errors(dense, small, names, pictures) -> dict[str, float]:
    """Squared error of what convolutions of neck and RPN put out for pictures, relative to its variance."""
    read = {}  # by side: by name: module and input of each call
    for side, model in (("dense", dense), ("small", small)):
        convs = {name: model.get_submodule(name) for name in names}
        if side == "small":
            convs = {name: factored_layer(module) for name, module in convs.items()}
        calls = read[side] = {name: [] for name in names}

        def keep(name, calls=calls):
            return lambda layer, inputs: calls[name].append((layer, inputs[0]))

        with hooked(inputs=[(conv, keep(name)) for name, conv in convs.items()]), torch.no_grad():
            for picture in pictures:
                images = model.preprocess_image([picture])
                model.proposal_generator(images, model.backbone(images.tensor), None)
    errors = {}
    with torch.no_grad():
        for name in names:
            conv = dense.get_submodule(name)
            outputs = {"dense": [], "small": []}
            for _, x in read["dense"][name]:
                linear = torch.nn.functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
                outputs["dense"].append(linear.transpose(0, 1).flatten(1))
            for layer, x in read["small"][name]:
                outputs["small"].append(type(layer).forward(layer, x).transpose(0, 1).flatten(1))
            target, output = (torch.cat(outputs[side], 1) for side in ("dense", "small"))
            mean = target.mean(1, keepdim=True) if conv.bias is not None else 0.0
            errors[name] = float((output - target).square().sum() / (target - mean).square().sum())
    return errors


def test_the_error_told_is_the_error_there_is(config, generator):
    """Also without a bias, where a norm follows, and for two RPN convolutions, the second reading the fitted first."""
    torch.manual_seed(0)
    dense = build_model(config("dense_faster_rcnn.yaml", **{"MODEL.FPN.NORM": "GN", "MODEL.RPN.CONV_DIMS": "[-1,-1]"}))
    for conv in dense.eval().proposal_generator.rpn_head.conv:
        torch.nn.init.kaiming_normal_(conv.weight)
    layout = dict.fromkeys(
        ("backbone.fpn_output2", "proposal_generator.rpn_head.conv.conv0", "proposal_generator.rpn_head.conv.conv1"), 1
    )
    pictures, off = smooth_pictures(generator), dict.fromkeys(("neck_rank", "head_rank", "box_head_rank"))
    fitted = compress_detector(dense, None, layout=layout, calibration=pictures, **off)
    told = {layer.name: layer.error for layer in fitted.report.layers}
    plain = compress_detector(dense, None, layout=layout, **off)
    errors = output_errors(dense, fitted.model, layout, pictures)
    unfitted = output_errors(dense, plain.model, layout, pictures)
    assert errors == pytest.approx(told, rel=1e-4)  # all positions of maps this small were looked at
    assert all(told[name] < 0.15 * unfitted[name] for name in layout), (told, unfitted)


def test_cascades(config, generator):
    keys = {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}
    dense = build_model(config("dense_mask_rcnn.yaml", **keys)).eval()
    pictures = smooth_pictures(generator, 2)
    fitted = compress_detector(dense, None, neck_rank=None, box_head_rank=16, calibration=pictures)
    assert sum(layer.part == "box" for layer in fitted.report.layers) == 6
    assert all(layer.error is not None and layer.error < 1 for layer in fitted.report.layers), fitted.report.table()


def test_calibration_needs_sound_images(own):
    for images, pattern in (
        ([torch.rand(3, 64, 96)], "image 0: expected a dict .* got Tensor"),
        ([{"image": torch.rand(64, 96, 3)}], r"image 0: expected a dict .* got \(64, 96, 3\)"),
    ):
        with pytest.raises(InputError, match=pattern):
            compress_detector(own, None, calibration=images)


def test_ranks_and_detectron2s_own_resnet_do_not_pass_silently(config, own, tmp_path):
    """The file's dense layers do not fit the factored ones of the config: an error, not layers left at random."""
    NortonCheckpointer(own, str(tmp_path)).save("dense")
    keys = {"MODEL.WEIGHTS": tmp_path / "dense.pth", "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone"}
    with pytest.raises(InputError, match=r"tensors of the detector are missing .*fc1"):
        load_detector(config(**keys, **{"MODEL.NORTON.BOX_HEAD_RANK": 8}))


def test_a_layout_that_is_not_the_files(result, config, tmp_path):
    info = info_of_model(result.model)
    for layout in (dict(list(info.layout.items())[1:]), info.layout | {"roi_heads.box_predictor.cls_score": 3}):
        save_tensors(tmp_path / "x.safetensors", result.model.state_dict(), replace(info, layout=layout))
        with pytest.raises(InputError, match=r"x\.safetensors: metadata: layout does not name the factored layers"):
            build_detector(config("norton_faster_rcnn.yaml", **{"MODEL.WEIGHTS": tmp_path / "x.safetensors"}))

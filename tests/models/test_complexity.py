"""MACs and parameters: closed forms, published figures, and fvcore as the second opinion."""

import copy
import json
import runpy
import sys

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torchvision.models import detection

from norton_det.checkpoint.save import save_checkpoint
from norton_det.models.complexity import count_complexity
from norton_det.models.fuse import fuse
from norton_det.models.layers import CPConv2d
from norton_det.models.mac_counter import count_parameters
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.tv import (
    fasterrcnn_norton_resnet50_fpn,
    keypointrcnn_norton_resnet50_fpn,
    maskrcnn_norton_resnet50_fpn,
    save_detector,
)
from norton_det.utils.errors import InputError

COCO = (3, 800, 800)
# preset -> conv + linear MACs at 224 x 224, parameters; dense is torchvision's own ResNet-50
CLASSIFIERS = {
    "dense": (4_089_184_256, 25_557_032),
    "norton-64": (1_473_518_000, 10_525_342),
    "norton-77": (962_849_947, 7_960_930),
    "norton-78": (899_619_808, 5_885_736),
}
# Table of the paper, 800 x 800: (builder, preset) -> G MACs, M parameters; see tools/analyze_complexity.py
PUBLISHED = [
    (fasterrcnn_norton_resnet50_fpn, "dense", 0, 134.85, 41.81),
    (fasterrcnn_norton_resnet50_fpn, "norton-43", 0, 111.47, 30.72),
    (fasterrcnn_norton_resnet50_fpn, "norton-78", 0, 93.39, 22.01),
    (maskrcnn_norton_resnet50_fpn, "dense", 0, 134.85, 44.46),
    (maskrcnn_norton_resnet50_fpn, "norton-43", 0, 111.47, 33.36),
    (maskrcnn_norton_resnet50_fpn, "norton-78", 0, 93.39, 24.65),
    (keypointrcnn_norton_resnet50_fpn, "dense", 1, 137.42, 59.19),
    (keypointrcnn_norton_resnet50_fpn, "norton-43", 1, 114.04, 48.10),
    (keypointrcnn_norton_resnet50_fpn, "norton-78", 1, 95.97, 39.39),
]


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs)


def fvcore_macs(module: nn.Module, *inputs) -> int:
    """Convolutions and linear layers as fvcore counts them by tracing a real run."""
    analysis = FlopCountAnalysis(module.eval(), inputs).unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    counts = analysis.by_operator()
    return int(sum(counts[name] for name in ("conv", "linear", "addmm", "matmul")))


class Calls(nn.Module):
    """A module made of a function, for tracing."""

    def __init__(self, owner: nn.Module, call) -> None:
        super().__init__()
        self.owner, self.call = owner, call

    def forward(self, *inputs):
        return self.call(*inputs)


def test_closed_form_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 5 x 4 outputs: 8 * 20 * 27
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2),  # 5 x 4 inputs: 20 * 8 * (6 / 2) * 4
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.Linear(5, 7, bias=False),
    )
    found = count_complexity(model, (3, 10, 8))
    macs = [8 * 20 * 27, 0, 20 * 8 * 3 * 4, 0, 0, 30, 35]
    assert [row.macs for row in found.rows[1:]] == macs
    assert found.macs == sum(macs) == found.rows[0].macs
    params = [8 * 27 + 8, 16, 8 * 3 * 4 + 6, 0, 0, 35, 35]
    assert [row.params for row in found.rows[1:]] == params
    assert found.params == sum(params) == found.rows[0].params
    assert found.parts == {} and found.not_run == ()


@pytest.mark.parametrize("rank", [1, 3])
def test_cp_layer_by_its_formula(rank):
    layer = CPConv2d(10, 6, 3, rank, stride=2, padding=1)
    maps = 6 * rank
    train = maps * (10 * 12 * 16 + 3 * 6 * 16 + 3 * 6 * 8)  # 1x1 on the input, Kh x 1 halves H, 1 x Kw halves W
    found = count_complexity(layer, (10, 12, 16))
    assert found.macs == train
    assert found.params == maps * (10 + 3 + 3) + 6
    assert count_complexity(fuse(layer.eval()), (10, 12, 16)).macs == maps * (10 * 12 * 16 + 9 * 6 * 8)


def test_a_shared_layer_works_twice_and_is_held_once():
    layer = nn.Linear(4, 4)
    found = count_complexity(nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer), (1, 2, 2))
    assert (found.macs, found.params) == (32, 20)
    assert {row.name: row.macs for row in found.rows}["1"] == 32


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name):
    found = count_complexity(on_meta(NortonResNet, CompressionSpec.preset(name)))
    assert (found.macs, found.params) == CLASSIFIERS[name]


@pytest.mark.parametrize("name", ["dense", "norton-78"])
def test_every_module_sums_its_children(name):
    model = on_meta(NortonResNet, CompressionSpec.preset(name))
    rows = {row.name: row for row in count_complexity(model, (3, 96, 64)).rows}
    for name, module in model.named_modules():
        children = [rows[f"{name}.{child}".lstrip(".")] for child, _ in module.named_children()]
        if children and "downsample" not in name:
            assert rows[name].macs == sum(child.macs for child in children), name
            assert rows[name].params >= sum(child.params for child in children), name


def test_classifier_against_fvcore():
    model = NortonResNet(CompressionSpec.preset("norton-64"), num_classes=10)
    assert count_complexity(model, (3, 64, 96)).macs == fvcore_macs(model, torch.rand(1, 3, 64, 96))


@pytest.mark.parametrize(("build", "preset", "detections", "macs", "params"), PUBLISHED)
def test_published_detectors(build, preset, detections, macs, params):
    """Within 0.5 % (MACs: the published counter adds normalisation and more) and 0.05 % (parameters)."""
    found = count_complexity(on_meta(build, spec=preset), COCO, detections=detections)
    assert found.macs / 1e9 == pytest.approx(macs, rel=5e-3)
    assert found.params / 1e6 == pytest.approx(params, rel=5e-4)
    assert found.macs == sum(found.parts.values())


def test_faster_rcnn_to_the_last_parameter():
    dense = count_complexity(on_meta(fasterrcnn_norton_resnet50_fpn, spec="dense"), COCO)
    small = count_complexity(on_meta(fasterrcnn_norton_resnet50_fpn), COCO)
    assert dense.params == 41_808_406
    assert small.params == 22_012_182
    # by hand: FPN 1x1 and 3x3 at strides 4 to 32; RPN 3x3, 15 outputs a place, five levels; box head of 1000 regions
    places = [200**2, 100**2, 50**2, 25**2]
    fpn = sum(256 * place * (width + 9 * 256) for width, place in zip((256, 512, 1024, 2048), places, strict=True))
    rpn = sum((*places, 13**2)) * (256 * 9 * 256 + 256 * 15)
    box = 1000 * (256 * 49 * 1024 + 1024 * 1024 + 1024 * 91 * 5)
    body = count_complexity(on_meta(NortonResNet, CompressionSpec.dense(), 0), COCO).macs
    assert dense.parts == {"backbone": body, "fpn": fpn, "rpn": rpn, "box_head": box}
    assert abs(small.macs / 1e9 - 93.4) < 0.5


def test_torchvision_parts_against_fvcore():
    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5).eval()
    found = count_complexity(model, (3, 64, 96), proposals=7, detections=3)
    image = torch.rand(1, 3, 64, 96)
    features = list(model.backbone(image).values())
    heads = model.roi_heads
    assert found.parts["backbone"] + found.parts["fpn"] == fvcore_macs(model.backbone, image)
    assert found.parts["rpn"] == fvcore_macs(Calls(model.rpn.head, lambda *x: model.rpn.head(list(x))), *features)
    box = nn.Sequential(heads.box_head, heads.box_predictor)
    assert found.parts["box_head"] == fvcore_macs(box, torch.rand(7, 256, 7, 7))
    mask = nn.Sequential(heads.mask_head, heads.mask_predictor)
    assert found.parts["mask_head"] == fvcore_macs(mask, torch.rand(3, 256, 14, 14))


@pytest.fixture(scope="module")
def d2_model():
    """Detectron2 models by their config in its model zoo, without values."""
    model_zoo = pytest.importorskip("detectron2.model_zoo")
    from detectron2.modeling import build_model

    def build(name: str, device: str = "meta") -> nn.Module:
        cfg = model_zoo.get_config(name)
        cfg.MODEL.DEVICE = device
        with torch.device(device):
            return build_model(cfg).eval()

    return build


def test_detectron2_parts_against_fvcore(d2_model):
    model = d2_model("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "cpu")
    found = count_complexity(model, (3, 64, 96), proposals=7, detections=3)
    image = torch.rand(1, 3, 64, 96)
    features = list(model.backbone(image).values())
    heads, rpn_head = model.roi_heads, model.proposal_generator.rpn_head
    backbone = Calls(model.backbone, lambda x: tuple(model.backbone(x).values()))
    assert found.parts["backbone"] + found.parts["fpn"] == fvcore_macs(backbone, image)
    rpn = Calls(rpn_head, lambda *x: [y for part in rpn_head(list(x)) for y in part])
    assert found.parts["rpn"] == fvcore_macs(rpn, *features)
    box = nn.Sequential(heads.box_head, heads.box_predictor)
    assert found.parts["box_head"] == fvcore_macs(box, torch.rand(7, 256, 7, 7))
    keypoint = Calls(heads.keypoint_head, heads.keypoint_head.layers)
    assert found.parts["keypoint_head"] == fvcore_macs(keypoint, torch.rand(3, 256, 14, 14))
    rows = {row.name: row.macs for row in found.rows}
    assert rows["roi_heads.keypoint_head"] == found.parts["keypoint_head"]  # called by its layers(), not itself
    assert found.not_run == ()


@pytest.mark.parametrize(
    ("config", "params", "parts"),
    [
        # 80 classes and 3 x 4 boxes fewer than torchvision's 91; frozen normalisations count
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", 44_396_336, "backbone fpn rpn box_head mask_head"),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", 35_962_732, "backbone rpn box_head mask_head"),
        ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", 72_038_046, "backbone fpn rpn box_head mask_head"),
    ],
)
def test_detectron2_families(d2_model, config, params, parts):
    found = count_complexity(d2_model(config), COCO)
    assert found.params == params
    assert list(found.parts) == parts.split()
    assert found.macs == sum(found.parts.values()) and found.not_run == ()


def test_detector_that_does_more_says_what_is_left_out(d2_model):
    found = count_complexity(d2_model("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"), (3, 64, 64))
    assert found.not_run and all(name.startswith("sem_seg_head.") for name in found.not_run)
    assert "not run, so without MACs here: sem_seg_head" in found.table()


def test_regions_scale_the_heads_only():
    model = on_meta(keypointrcnn_norton_resnet50_fpn)
    one, two = (count_complexity(model, (3, 64, 64), proposals=n, detections=3 * n) for n in (10, 20))
    for part in ("box_head", "keypoint_head"):
        assert two.parts[part] == 2 * one.parts[part] > 0
    for part in ("backbone", "fpn", "rpn"):
        assert two.parts[part] == one.parts[part] > 0
    none = count_complexity(model, (3, 64, 64), proposals=0, detections=0)
    assert none.parts["box_head"] == none.parts["keypoint_head"] == 0


def test_images_are_padded_as_the_detector_pads():
    model = on_meta(fasterrcnn_norton_resnet50_fpn)
    assert count_complexity(model, (3, 65, 33)).macs == count_complexity(model, (3, 96, 64)).macs


def test_input_model_is_untouched():
    model = NortonResNet(CompressionSpec.preset("norton-78"), num_classes=3).train()
    model.layer1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    found = count_complexity(model, (3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert found == count_complexity(copy.deepcopy(model).eval(), (3, 32, 32))


def test_frozen_normalisation_counts():
    frozen = on_meta(
        NortonResNet, CompressionSpec.preset("norton-64"), norm=detection.faster_rcnn.misc_nn_ops.FrozenBatchNorm2d
    )
    assert sum(parameter.numel() for parameter in frozen.parameters()) < 10_525_342
    assert count_parameters(frozen) == 10_525_342


def test_table_and_dict():
    found = count_complexity(on_meta(maskrcnn_norton_resnet50_fpn, spec="dense"), COCO, proposals=500, detections=20)
    lines = found.table(depth=1).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["module", "total", "backbone", "rpn", "roi_heads"]
    assert lines[1].split()[1:] == ["MaskRCNN", f"{found.macs / 1e9:.3f}", "G", "44,454,513"]
    assert lines[-1] == (
        "MACs: multiply-adds of convolutions and linear layers for 1 image of 800 x 800; "
        "box head x 500 proposals; mask head x 20 detections"
    )
    assert len(found.table(depth=2).splitlines()) > len(lines)
    fields = json.loads(json.dumps(found.to_dict()))
    assert fields["macs"] == found.macs and fields["rows"][0]["params"] == found.params
    assert fields["basis"] == lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": (224, 224)}, r"input_size: expected \(channels, height, width\), got \(224, 224\)"),
        ({"input_size": (3, 0, 224)}, "input_size: expected"),
        ({"input_size": (4, 64, 64)}, "NortonResNet: expected a network of images"),
        ({"proposals": -1}, "proposals: expected a whole number"),
        ({"detections": 1.5}, "detections: expected a whole number"),
        ({"model": {}}, "model: expected a network"),
    ],
)
def test_bad_input(arguments, message):
    model = arguments.pop("model", None)
    model = on_meta(NortonResNet, CompressionSpec.dense()) if model is None else model
    with pytest.raises(InputError, match=message) as caught:
        count_complexity(model, **arguments)
    assert "\n" not in str(caught.value)


@pytest.fixture
def tool(repository, monkeypatch, capsys):
    """Run the command in this process: exit status, output, errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["analyze_complexity.py", *arguments])
        with pytest.raises(SystemExit) as exited:
            runpy.run_path(str(repository / "tools" / "analyze_complexity.py"), run_name="__main__")
        return exited.value.code or 0, *capsys.readouterr()

    return call


def test_tool_recounts_the_published_tables(tool):
    status, out, err = tool("--json", "--detections", "50")
    assert status == 0, err
    rows = {(row["network"], row["preset"]): row for row in json.loads(out)["rows"]}
    assert len(rows) == 15
    assert rows["classifier", "norton-64"]["macs"] == 1_473_518_000
    assert rows["faster", "norton-78"]["params"] == 22_012_182
    assert all(abs(row["macs_difference_percent"]) < 2.5 for row in rows.values())
    assert all(abs(row["params_difference_percent"]) < 0.25 for row in rows.values())
    mask = rows["mask", "dense"]
    assert mask["macs_with_heads"] == mask["macs"] + mask["head_macs"]
    assert mask["head_macs"] == 50 * (14 * 14 * 9 * 4 * 256**2 + 14 * 14 * 4 * 256**2 + 28 * 28 * 256 * 91)
    keypoint = rows["keypoint", "norton-78"]  # one detection is in the compared figure
    assert keypoint["macs_with_heads"] * 50 - keypoint["macs"] * 50 == keypoint["head_macs"] * 49


def test_tool_on_one_network(tool):
    network = ("--rank", "2", "--ratios", "[0.]+[0.3]*19", "--detector", "faster")
    status, out, err = tool(*network, "--input-size", "64", "96")
    assert status == 0, err
    assert "1 image of 64 x 96; box head x 1000 proposals" in out.splitlines()[-1]
    status, out, err = tool("--rank", "2", "--json")  # of ResNet-50, as compress takes it
    expected = count_complexity(on_meta(NortonResNet, CompressionSpec.parse(2)), (3, 224, 224))
    assert status == 0 and json.loads(out)["macs"] == expected.macs, err
    status, out, err = tool("--rank", "2", "--preset", "dense")
    assert status == 2 and err.startswith("error: --rank: expected it alone or with --ratios, got --preset dense")
    status, out, err = tool("--preset", "norton-99")
    assert status == 2 and err.startswith("error: preset: expected one of") and not out


def test_tool_reads_weights(tool, tmp_path):
    model = NortonResNet(CompressionSpec.preset("norton-78"), num_classes=10)
    file = str(save_checkpoint(tmp_path / "backbone.safetensors", model))
    status, out, err = tool("--weights", file, "--json")
    assert status == 0, err
    assert json.loads(out)["params"] == 5_885_736 - 990 * 2049
    detector = fasterrcnn_norton_resnet50_fpn(weights_backbone=file, num_classes=4)
    file = str(save_detector(tmp_path / "detector.safetensors", detector))
    status, out, err = tool("--weights", file, "--json", "--input-size", "64", "64")
    assert status == 0, err
    assert json.loads(out)["params"] == 22_012_182 - 87 * 5 * 1025
    status, out, err = tool("--weights", file, "--detector", "mask")
    assert status == 2 and err.startswith("error: --detector: expected faster") and not out


def test_feature_maps_that_the_pooler_does_not_know_are_named():
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    class OneMap(nn.Module):
        out_channels = 8

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 32)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"only": self.conv(x)}

    detector = FasterRCNN(OneMap(), 3, rpn_anchor_generator=AnchorGenerator(((32,),), ((1.0,),)))
    with pytest.raises(InputError, match="box head: expected feature maps 0, 1, 2, 3 to pool, got only; name them"):
        count_complexity(detector, (3, 64, 64))

"""Backbones by Detectron2's registry: shapes, freezing, whose spec counts, and what is refused in one line."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import nn

from norton_det.checkpoint.load import load_checkpoint
from norton_det.checkpoint.save import save_checkpoint
from norton_det.d2 import NortonCheckpointer, add_norton_config, load_config, spec_from_config
from norton_det.models.description import NetworkInfo
from norton_det.models.keys import torchvision_to_d2
from norton_det.models.preprocessing import MSRA
from norton_det.models.spec import CompressionSpec
from tests.messages import refused

from .conftest import classifier

PLAIN = {"MODEL.BACKBONE.NAME": "build_norton_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT": 0}


@pytest.mark.parametrize(
    ("preset", "features"),
    [
        ("norton-78", ["stem", "res2", "res3", "res4", "res5"]),
        ("norton-43", ["res4"]),
        ("dense", ["stem", "res5"]),
        ("norton-64", ["res5", "res3"]),
    ],
)
def test_output_shape_is_what_comes_out(config, preset, features):
    cfg = config(**PLAIN, **{"MODEL.NORTON.PRESET": preset, "MODEL.RESNETS.OUT_FEATURES": features})
    backbone = build_backbone(cfg).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert list(maps) == features and set(backbone.output_shape()) == set(features)
    widths = CompressionSpec.preset(preset).widths()
    known = dict(zip(("stem", "res2", "res3", "res4", "res5"), (widths.stem, *widths.stages), strict=True))
    for name, shape in backbone.output_shape().items():
        assert shape.channels == known[name]
        assert maps[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_fpn_levels(config):
    backbone = build_backbone(config()).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 128))
    assert list(maps) == ["p2", "p3", "p4", "p5", "p6"]
    for name, shape in backbone.output_shape().items():
        assert (shape.channels, maps[name].shape[2:]) == (256, (64 // shape.stride, 128 // shape.stride))
    assert backbone.size_divisibility == 32
    assert [backbone.get_submodule(f"fpn_lateral{s}").in_channels for s in (2, 3, 4, 5)] == [230, 460, 614, 2048]


@pytest.mark.parametrize("freeze_at", range(6))
def test_freezing(config, freeze_at):
    cfg = config(**PLAIN | {"MODEL.BACKBONE.FREEZE_AT": freeze_at, "MODEL.RESNETS.NORM": "BN"})
    backbone = build_backbone(cfg).train()
    groups = [("conv1", "bn1"), *((f"layer{stage}",) for stage in range(1, 5))]
    frozen = {name for group in groups[:freeze_at] for name in group}
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (name.split(".")[0] not in frozen), name
    norms = 0
    for name, module in backbone.named_modules():
        if name.split(".")[0] in frozen:
            assert not isinstance(module, nn.BatchNorm2d), name
            norms += isinstance(module, FrozenBatchNorm2d)
        else:
            assert not isinstance(module, FrozenBatchNorm2d), name
    assert norms == [0, 1, 11, 24, 43, 53][freeze_at]  # the stem, 3 a block and the projections
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))
    for name, buffer in backbone.named_buffers():
        if name.split(".")[0] in frozen:
            assert torch.equal(buffer, before[name]), name  # statistics stand still
        elif name.endswith("running_mean"):
            assert not torch.equal(buffer, before[name]), name


@pytest.mark.parametrize(
    ("norm", "kind"), [("BN", "BatchNorm2d"), ("FrozenBN", "FrozenBatchNorm2d"), ("SyncBN", "SyncBatchNorm")]
)
def test_normalisation(config, norm, kind):
    cfg = config(**PLAIN, **{"MODEL.RESNETS.NORM": norm})
    kinds = {type(module).__name__ for name, module in build_backbone(cfg).named_modules() if name.endswith("bn2")}
    assert len(kinds) == 1 and kinds.pop().endswith(kind)


def test_group_normalisation_needs_widths_that_divide(config):
    options = PLAIN | {"MODEL.RESNETS.NORM": "GN"}
    backbone = build_backbone(config(**options, **{"MODEL.NORTON.PRESET": "dense", "MODEL.NORTON.RANK": 1}))
    assert type(backbone.layer3[1].bn2) is nn.GroupNorm and backbone.layer3[1].conv2.rank == 1
    refused(lambda: build_backbone(config(**options)), "NORM: GN needs widths in multiples of 32, got 38; use BN")


@pytest.mark.parametrize("name", ["XN", "''"])
def test_unknown_normalisation(config, name):
    refused(lambda: build_backbone(config(**PLAIN, **{"MODEL.RESNETS.NORM": name})), "expected FrozenBN, BN, SyncBN")


def trainers_file(config, path):
    """What NortonTrainer writes for a norton-64 detector."""
    backbone = build_backbone(config(**{"MODEL.NORTON.PRESET": "norton-64"}))
    model = nn.Module()
    model.backbone = backbone
    NortonCheckpointer(model, str(path.parent)).save(path.stem, iteration=3)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_the_weights_own_spec_counts(config, tmp_path, norton_64, kind):
    file = norton_64 if kind == "safetensors" else trainers_file(config, tmp_path / "model_final.pth")
    cfg = config(**{"MODEL.WEIGHTS": file, "MODEL.NORTON.PRESET": "norton-78"})
    bottom_up = build_backbone(cfg).bottom_up
    assert bottom_up.spec == CompressionSpec.preset("norton-64")
    assert bottom_up.layer4[0].conv1.weight.shape[0] == CompressionSpec.preset("norton-64").widths().blocks[3][0]


def test_dense_weights_leave_the_spec_to_the_config(config, dense_file):
    cfg = config(**{"MODEL.WEIGHTS": dense_file, "MODEL.NORTON.PRESET": "norton-77"})
    assert build_backbone(cfg).bottom_up.spec == CompressionSpec.preset("norton-77")


def test_preprocessing_has_to_be_that_of_the_weights(config, tmp_path, norton_64):
    msra = classifier("norton-64", stride_in_1x1=True)
    msra.preprocessing = MSRA
    file = save_checkpoint(tmp_path / "msra.safetensors", msra)
    keys = {"MODEL.WEIGHTS": file, "INPUT.FORMAT": "BGR", "MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}
    keys["MODEL.PIXEL_MEAN"] = [103.53, 116.28, 123.675]
    refused(
        lambda: build_backbone(config(**{"MODEL.WEIGHTS": file})),
        r"msra\.safetensors: wants input BGR .*; set INPUT\.FORMAT BGR "
        r"MODEL\.PIXEL_MEAN \[103\.53, 116\.28, 123\.675\] MODEL\.PIXEL_STD \[1\.0, 1\.0, 1\.0\] MODEL\.RES.*1X1 True$",
    )
    refused(
        lambda: build_backbone(config(**keys)), r"wants MODEL\.RESNETS\.STRIDE_IN_1X1 True, the config has False; set M"
    )
    backbone = build_backbone(config(**keys, **{"MODEL.RESNETS.STRIDE_IN_1X1": True})).bottom_up
    assert backbone.preprocessing == MSRA and backbone.layer2[0].conv1.stride == (2, 2)
    # Detectron2 rounds its own numbers a little differently
    rounded = config(**{"MODEL.WEIGHTS": norton_64, "MODEL.PIXEL_MEAN": [123.7, 116.3, 103.5]})
    assert build_backbone(rounded).bottom_up.spec.name == "norton-64"


@pytest.mark.parametrize(
    ("keys", "pattern"),
    [
        ({"MODEL.RESNETS.NUM_GROUPS": 32}, "NUM_GROUPS: expected 1 for resnet50, got 32; set it to 1"),
        ({"MODEL.RESNETS.WIDTH_PER_GROUP": 128}, "WIDTH_PER_GROUP: expected 64 for resnet50, got 128"),
        ({"MODEL.RESNETS.RES5_DILATION": 2}, "RES5_DILATION: expected 1 for resnet50, got 2"),
        ({"MODEL.RESNETS.STEM_OUT_CHANNELS": 32}, "STEM_OUT_CHANNELS: expected 64 for resnet50, got 32"),
        ({"MODEL.RESNETS.RES2_OUT_CHANNELS": 64}, "RES2_OUT_CHANNELS: expected 256 for resnet50, got 64"),
        ({"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, False, False]}, "expected no deformable convolution"),
        ({"MODEL.RESNETS.OUT_FEATURES": ["res6"]}, r"expected some of stem, res2, res3, res4, res5, got \['res6'\]"),
        ({"MODEL.RESNETS.OUT_FEATURES": []}, r"OUT_FEATURES: expected some of .*, got \[\]"),
        ({"MODEL.BACKBONE.FREEZE_AT": 6}, "FREEZE_AT: expected 0 to 5, got 6; 2 is usual"),
        ({"MODEL.BACKBONE.FREEZE_AT": -1}, "FREEZE_AT: expected 0 to 5, got -1"),
        ({"MODEL.PIXEL_MEAN": [1.0], "MODEL.PIXEL_STD": [1.0]}, "MODEL.PIXEL_MEAN: expected 3 "),
        ({"MODEL.RESNETS.DEPTH": 20}, "MODEL.RESNETS.DEPTH: expected one of 18, 34, 50, 101, 152, got 20; 50 is usual"),
        ({"MODEL.RESNETS.DEPTH": 18}, "RES2_OUT_CHANNELS: expected 64 for resnet18, got 256; set it to 64"),
        ({"MODEL.NORTON.PRESET": "norton-99"}, "expected one of dense, norton-43, .*, got 'norton-99'; choose"),
        ({"MODEL.NORTON.RANK": 10}, "MODEL.NORTON: rank: expected 1 to 9"),
        ({"MODEL.NORTON.RANK": "[1]*15"}, "MODEL.NORTON: rank: expected one number or 16"),
        ({"MODEL.NORTON.RANK": {}}, "option MODEL.NORTON.RANK: .*[Tt]ype"),
        ({"MODEL.NORTON.RATIOS": "[0.]*100"}, r"expected 20 .*, got 100; use ratios\[:20\]"),
        ({"MODEL.NORTON.RATIOS": "[1.]*20"}, r"ratios\[0\]: expected 0 <= ratio < 1"),
        ({"MODEL.NORTON.RATIOS": 3}, "MODEL.NORTON.RATIOS: expected a list or text, got 3"),
        (
            {"MODEL.FPN.IN_FEATURES": []},
            "MODEL.FPN.IN_FEATURES: expected some of .*, got none; start from a config with",
        ),
        ({"MODEL.FPN.IN_FEATURES": ["res3", "res4", "res6"]}, "MODEL.FPN.IN_FEATURES: expected some of OUT_FEATURES"),
    ],
)
def test_what_is_refused(config, keys, pattern):
    refused(lambda: build_backbone(config(**keys)), pattern)


def test_both_stacks_compute_the_same(config):
    """Dense and in Detectron2's own ResNet, with the same weights: the same features."""
    keys = {"MODEL.NORTON.PRESET": "dense", "MODEL.RESNETS.OUT_FEATURES": ["stem", "res2", "res3", "res4", "res5"]}
    for stride in (False, True):
        cfg = config(**PLAIN, **keys, **{"MODEL.RESNETS.STRIDE_IN_1X1": stride})
        ours, theirs = build_backbone(cfg).eval(), build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
        state = classifier("dense", 0).state_dict()
        state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
        ours.load_state_dict(state, strict=True)
        theirs.load_state_dict({torchvision_to_d2(name): tensor for name, tensor in state.items()}, strict=True)
        assert {n: (s.channels, s.stride) for n, s in ours.output_shape().items()} == {
            n: (s.channels, s.stride) for n, s in theirs.output_shape().items()
        }
        image = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            found, expected = ours(image), theirs(image)
        for name, features in expected.items():
            assert (found[name] - features).norm() <= 1e-4 * features.norm(), name


def test_features_are_those_of_the_classifier(config, norton_64):
    cfg = config(**PLAIN, **{"MODEL.WEIGHTS": norton_64})
    model = nn.Module()
    model.backbone = build_backbone(cfg).eval()
    NortonCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = load_checkpoint(norton_64).forward_features(image), model.backbone(image)
    for name, features in found.items():
        torch.testing.assert_close(features, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "rank", "ratios"),
    [
        ({"RANK": 2}, 2, "norton-78"),
        ({"RANK": "'2'"}, 2, "norton-78"),
        ({"RANK": 0}, None, "norton-78"),
        ({"RANK": "[1]*8+[2]*8"}, (1,) * 8 + (2,) * 8, "norton-78"),
        ({"RANK": [3] * 16}, 3, "norton-78"),
        ({"RATIOS": "[0.]+[0.28]*19"}, 1, "norton-64"),
        ({"RATIOS": [0.0] + [0.28] * 19}, 1, "norton-64"),
        ({"RATIOS": "0.,0.5" + ",0" * 18, "RANK": 1}, 1, (0.0, 0.5) + (0.0,) * 18),
        ({"PRESET": "dense", "RATIOS": "[0.]+[0.45]*19"}, None, "norton-77"),
        ({"PRESET": "dense", "RANK": 4}, 4, "dense"),
        ({"RANK": "None", "RATIOS": "None"}, 1, "norton-78"),
    ],
)
def test_rank_and_ratios(config, keys, rank, ratios):
    spec = spec_from_config(config(**{f"MODEL.NORTON.{key}": value for key, value in keys.items()}))
    assert spec.rank == rank
    assert spec.ratios == (CompressionSpec.preset(ratios).ratios if isinstance(ratios, str) else ratios)
    assert spec.arch == "resnet50"


def test_deeper_networks(config):
    keys = {"MODEL.RESNETS.DEPTH": 101, "MODEL.NORTON.RANK": 1, "MODEL.NORTON.RATIOS": "[0.]+[0.5]*36"}
    backbone = build_backbone(config(**PLAIN, **keys))
    assert backbone.spec.arch == "resnet101" and len(backbone.layer3) == 23
    assert build_backbone(config(**PLAIN, **keys | {"MODEL.RESNETS.DEPTH": 50, "MODEL.NORTON.RATIOS": "[0.]*20"}))
    assert spec_from_config(config(**{"MODEL.RESNETS.DEPTH": 152, "MODEL.NORTON.PRESET": "dense"})).is_dense


def test_the_keys_and_their_defaults():
    cfg = get_cfg()
    add_norton_config(cfg)
    assert dict(cfg.MODEL.NORTON) == {"PRESET": "norton-78", "CALIBRATION_IMAGES": 0} | dict.fromkeys(
        ("RANK", "RATIOS", "NECK_RANK", "HEAD_RANK", "BOX_HEAD_RANK")
    )
    assert spec_from_config(cfg) == CompressionSpec.preset("norton-78")


# --- load_config -----------------------------------------------------------------------------------------------------


def test_bare_names_and_overrides(repository):
    cfg = load_config("norton_mask_rcnn.yaml", ["MODEL.NORTON.PRESET", "norton-64"], output_dir="elsewhere")
    assert cfg.MODEL.MASK_ON and cfg.MODEL.NORTON.PRESET == "norton-64" and cfg.OUTPUT_DIR == "elsewhere"
    assert cfg.is_frozen() and (cfg.MODEL.DEVICE == "cuda") == torch.cuda.is_available()
    assert load_config("quick_schedules/dense_mask_rcnn_instant_test.yaml").MODEL.NORTON.PRESET == "dense"
    assert load_config("dense_mask_rcnn_instant_test.yaml").SOLVER.MAX_ITER == 40
    assert load_config(str(repository / "configs" / "norton_mask_rcnn.yaml")).MODEL.MASK_ON


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("MODEL:\n  NORTON:\n    PRESETT: norton-64\n", r"mine\.yaml: .*PRESETT.*; correct that key"),
        ("MODELL: {}\n", "MODELL"),
        ("MODEL:\n  NORTON:\n    PRESET: 78\n", "Type mismatch.*int.*PRESET"),
        ("SOLVER: 3\n", "SOLVER|CfgNode"),
        ("MODEL: [\n", "expected the node content|while parsing"),
        ("MODEL:\n\tMASK_ON: True\n", "cannot start any token|found character"),
        ("- 1\n- 2\n", r"mine\.yaml: "),
        ("just text\n", r"mine\.yaml: "),
        ("", r"mine\.yaml: "),
        ("_BASE_: none.yaml\n", "none.yaml"),
        ("MODEL:\n  WEIGHTS: !!python/object/apply:os.system ['touch RAN']\n", "could not determine a constructor"),
        ("_BASE_: base.yaml\n", "could not determine a constructor"),
    ],
)
def test_configs_that_are_refused(tmp_path, monkeypatch, text, pattern):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "base.yaml").write_text("OUTPUT_DIR: !!python/object/apply:os.system ['touch RAN']\n")
    refused(lambda: load_config("mine.yaml"), pattern)
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    ("name", "opts", "pattern"),
    [
        (
            "norton_faster.yaml",
            [],
            r"expected a config file, found no such file; the project's own are .*norton_faster_",
        ),
        ("norton_faster_rcnn.yaml", ["MODEL.WEIGHTS"], "expected pairs of KEY VALUE, got 1 words: MODEL.WEIGHTS"),
        ("norton_faster_rcnn.yaml", ["MODEL.NORTN.RANK", "1"], "option MODEL.NORTN.RANK: .*; Detectron2's keys and"),
        ("norton_faster_rcnn.yaml", ["MODEL.NORTON.PRESET", "78"], "option MODEL.NORTON.PRESET: .*[Tt]ype"),
        ("norton_faster_rcnn.yaml", ["SOLVER.MAX_ITER", "many"], "option SOLVER.MAX_ITER: .*[Tt]ype"),
        ("norton_faster_rcnn.yaml", ["SOLVER", "3"], "option SOLVER: "),
        ("norton_faster_rcnn.yaml", ["MODEL.MASK_ON.X", "3"], "option MODEL.MASK_ON.X: "),
    ],
)
def test_options_that_are_refused(name, opts, pattern):
    refused(lambda: load_config(name, opts), pattern)


def test_info_of_a_backbone(config, norton_64):
    from norton_det.d2 import info_from_config

    info = info_from_config(config(**{"MODEL.WEIGHTS": norton_64}))
    assert isinstance(info, NetworkInfo) and info.spec.name == "norton-64" and info.num_classes == 10

"""Every config of the project builds its model; a baseline is the same recipe with nothing compressed."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import CfgNode
from detectron2.modeling import FPN, build_model

from norton_det.d2 import find_config, load_config
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError
from tests import REPOSITORY

CONFIGS = REPOSITORY / "configs"
ALL = sorted(
    path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base")
)
LEAVES = [leaf for leaf in ALL if not leaf.startswith(("bccd/", "shapes/"))]
TASKS = ("faster", "mask", "keypoint")
PRESETS = {"norton": "norton-78", "demo": "norton-78"} | {
    name: name for name in ("dense", "norton-43", "norton-50", "norton-64", "norton-77")
}


def parts(leaf: str) -> tuple[str, str]:
    """Preset and task that a config's name promises."""
    level, task, _ = Path(leaf).stem.removesuffix("_instant_test").split("_", 2)
    return PRESETS[level], task


def architecture(leaf: str) -> str:
    """The ResNet that a config's name promises."""
    _, _, depth = Path(leaf).stem.partition("_resnet")
    return f"resnet{depth or 50}"


def flat(node: CfgNode, prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in node.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
    return out


def test_there_is_one_per_level_and_task():
    top = {parts(leaf) for leaf in LEAVES if "/" not in leaf}
    assert top == {(preset, task) for preset in PRESETS.values() for task in TASKS}
    assert {leaf.split("/")[0] for leaf in LEAVES if "/" in leaf} == {"quick_schedules"}


@pytest.mark.parametrize("leaf", LEAVES)
def test_config_builds_its_model(leaf):
    preset, task = parts(leaf)
    cfg = load_config(leaf, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "meta"])
    assert cfg.MODEL.NORTON.PRESET == preset
    with torch.device("meta"):  # shapes without values
        model = build_model(cfg)
    assert isinstance(model.backbone, FPN) and list(model.backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    spec = CompressionSpec.preset(preset, architecture(leaf))
    assert model.backbone.bottom_up.spec == spec
    laterals = [model.backbone.get_submodule(f"fpn_lateral{level}").in_channels for level in (2, 3, 4, 5)]
    assert laterals == list(spec.widths().stages)
    heads = model.roi_heads
    assert (heads.mask_on, heads.keypoint_on) == (task == "mask", task == "keypoint")
    classes = {"keypoint": 1}.get(task, 5 if "/" in leaf else 80)
    assert heads.box_predictor.cls_score.out_features == classes + 1
    if task == "keypoint":
        assert heads.keypoint_head.score_lowres.out_channels == 17
    assert model.input_format == "RGB" and not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    train, test = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    assert ("keypoints" in train, "keypoints" in test) == (task == "keypoint",) * 2
    assert train.startswith("norton_shapes" if "/" in leaf else ("coco", "keypoints_coco"))
    assert all(step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if not Path(leaf).name.startswith(("norton_", "demo_"))])
def test_levels_differ_in_nothing_else(leaf):
    name = Path(leaf).name
    other = leaf.replace(name, "norton_" + name.split("_", 1)[1])
    ours, theirs = flat(load_config(leaf)), flat(load_config(other))
    assert ours.keys() == theirs.keys()
    assert {key for key in ours if ours[key] != theirs[key]} == {"MODEL.NORTON.PRESET", "OUTPUT_DIR"}


@pytest.mark.parametrize(
    ("data", "task", "levels", "around"),
    [
        ("bccd", "faster", {"norton-43": "norton-43", "norton": "norton-78"}, {"NECK_RANK", "BOX_HEAD_RANK"}),
        ("shapes", "mask", {}, {"NECK_RANK", "HEAD_RANK", "BOX_HEAD_RANK"}),
        ("shapes", "keypoint", {}, {"NECK_RANK", "HEAD_RANK", "BOX_HEAD_RANK"}),
    ],
)
def test_small_data(data, task, levels, around):
    """Compressed and dense by the same recipe; ``whole`` with the layers around the ResNet."""
    leaves = [leaf for leaf in ALL if leaf.startswith(f"{data}/") and "_long_" not in leaf]
    found = {Path(leaf).stem: load_config(Path(leaf).name) for leaf in leaves}
    found = {name: flat(cfg) for name, cfg in found.items() if task in name}
    whole = {"bccd": "norton_whole", "shapes": "norton"}[data]
    presets = {"dense": "dense", whole: "norton-78"} | levels
    assert found.keys() == {f"{data}_{name}_{task}_rcnn" for name in presets}
    dense = found[f"{data}_dense_{task}_rcnn"]
    for name, preset in presets.items():
        norton = found[f"{data}_{name}_{task}_rcnn"]
        differ = {key for key in dense if dense[key] != norton[key]} | {"MODEL.NORTON.PRESET", "OUTPUT_DIR"}
        ranks = {f"MODEL.NORTON.{rank}" for rank in around} if name == whole else set()
        assert norton["MODEL.NORTON.PRESET"] == preset
        assert differ == {"MODEL.NORTON.PRESET", "OUTPUT_DIR"} | ranks
    assert dense["MODEL.ROI_HEADS.NUM_CLASSES"] == {"faster": 3, "mask": 5, "keypoint": 1}[task]
    assert dense["DATASETS.TEST"][0].startswith({"bccd": "bccd_test", "shapes": "norton_shapes"}[data])


def test_as_many_minutes():
    short, long = (flat(load_config(f"bccd_norton_whole{kind}_faster_rcnn.yaml")) for kind in ("", "_long"))
    differ = {key for key in short if short[key] != long[key]}
    assert differ == {"SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "OUTPUT_DIR"}
    assert long["SOLVER.MAX_ITER"] == 1400 > 2 * short["SOLVER.MAX_ITER"]


def test_output_folders_do_not_meet():
    folders = [load_config(leaf).OUTPUT_DIR for leaf in ALL]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize(
    ("task", "epochs", "steps", "images"),
    [("faster", 26, (16, 22), 117_266), ("mask", 26, (16, 22), 117_266), ("keypoint", 46, (36, 43), 56_599)],
)
def test_schedule_of_the_paper(task, epochs, steps, images):
    cfg = load_config(f"norton_{task}_rcnn.yaml")
    per_epoch = images // cfg.SOLVER.IMS_PER_BATCH
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == (16, 0.02, 1e-4)
    assert cfg.SOLVER.MAX_ITER == epochs * per_epoch
    assert tuple(cfg.SOLVER.STEPS) == tuple(step * per_epoch for step in steps)


def test_names_that_are_not_there(tmp_path, monkeypatch):
    assert find_config("norton_faster_rcnn.yaml") == find_config(str(CONFIGS / "norton_faster_rcnn.yaml"))
    with pytest.raises(
        InputError, match=r"^none\.yaml: expected a config file, .*own are .*norton_mask_rcnn\.yaml"
    ) as e:
        find_config("none.yaml")
    assert "Base" not in str(e.value) and "\n" not in str(e.value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "norton_faster_rcnn.yaml").write_text("VERSION: 2\n")
    assert find_config("norton_faster_rcnn.yaml") == Path("norton_faster_rcnn.yaml")  # a file of one's own comes first

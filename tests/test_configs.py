"""Every config builds its detector, with the widths that it names."""

import pytest
import torch
import yaml

pytest.importorskip("detectron2")

from detectron2.modeling import build_model

from norton_det.d2 import find_config, load_config
from norton_det.d2.config import CONFIG_FOLDERS
from norton_det.errors import InputError
from norton_det.spec import CompressionSpec

FOLDER = next(folder for folder in CONFIG_FOLDERS if folder.is_dir())
NAMES = sorted(
    path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml") if not path.name.startswith("Base")
)


def test_there_are_configs() -> None:
    assert {"norton_faster_rcnn.yaml", "norton_mask_rcnn.yaml", "norton_keypoint_rcnn.yaml"} <= set(NAMES)
    assert len(NAMES) >= 18


@pytest.mark.parametrize("name", NAMES)
def test_builds(name: str) -> None:
    cfg = load_config(name, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    level = "dense" if "dense" in name else next((p for p in (43, 50, 64, 77) if f"norton-{p}" in name), 78)
    preset = level if isinstance(level, str) else f"norton-{level}"
    assert model.backbone.bottom_up.spec.same_network(CompressionSpec.preset(preset))
    assert model.backbone.output_shape()["p2"].stride == 4
    assert hasattr(model.roi_heads, "mask_head") == ("mask" in name)
    assert hasattr(model.roi_heads, "keypoint_head") == ("keypoint" in name)
    assert cfg.INPUT.FORMAT == "RGB" and not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert max(cfg.SOLVER.STEPS, default=0) < cfg.SOLVER.MAX_ITER


@pytest.mark.parametrize("task", ["faster", "mask", "keypoint"])
def test_baseline_differs_in_nothing_but_the_compression(task: str) -> None:
    dense, norton = (yaml.safe_load(load_config(f"{kind}_{task}_rcnn.yaml").dump()) for kind in ("dense", "norton"))
    assert dense["MODEL"]["NORTON"].pop("PRESET") == "dense"
    assert norton["MODEL"]["NORTON"].pop("PRESET") == "norton-78"
    assert dense.pop("OUTPUT_DIR") != norton.pop("OUTPUT_DIR")
    assert dense == norton


def test_the_published_schedule() -> None:
    cfg = load_config("norton_faster_rcnn.yaml")
    epoch = 117_266 // cfg.SOLVER.IMS_PER_BATCH  # images of COCO 2017 train that have an annotation
    assert cfg.SOLVER.BASE_LR == 0.02 and cfg.SOLVER.MAX_ITER == 26 * epoch
    assert cfg.SOLVER.STEPS == (16 * epoch, 22 * epoch)


def test_bare_names_are_found_and_unknown_ones_list_the_choices() -> None:
    assert find_config("norton_faster_rcnn.yaml") == FOLDER / "norton_faster_rcnn.yaml"
    assert find_config("norton_mask_rcnn_instant_test.yaml").parent.name == "quick_schedules"
    with pytest.raises(InputError, match=r"norton-43_faster_rcnn\.yaml"):
        find_config("norton_fastest_rcnn.yaml")

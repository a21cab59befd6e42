"""Weights that are compressed on the way to training, by themselves or fitted to training pictures."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from norton_det.checkpoint.load import load_checkpoint, load_weights
from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.save import save_checkpoint
from norton_det.compression.resnet import compress
from norton_det.d2 import NortonCheckpointer, NortonTrainer, load_detector
from norton_det.d2.build import build_detector, check_weights
from norton_det.d2.initial_weights import _calibration, compress_weights, resume_weights, training_pictures
from norton_det.data import generate_dataset, register_generated
from norton_det.models.factorize import find_layout
from norton_det.models.preprocessing import MSRA
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

from .conftest import classifier


@pytest.fixture
def fitted(config, tmp_path):
    """``fitted(**keys)``: a config whose weights are fitted to six pictures of 96 pixels, one of them damaged."""
    root = generate_dataset(tmp_path / "norton_shapes", train=7, val=1, height=96, width=128, seed=3)
    register_generated(root)
    next(iter(sorted((root / "train2017").iterdir()))).write_bytes(b"no picture")

    def make(**keys):
        own = {"MODEL.NORTON.CALIBRATION_IMAGES": 7, "DATASETS.TRAIN": ("norton_shapes_train",), "SEED": 1}
        sizes = {"INPUT.MIN_SIZE_TRAIN": (96,), "INPUT.MIN_SIZE_TEST": 96, "OUTPUT_DIR": tmp_path / "out"}
        return config(**own | sizes | keys)

    return make


def test_dense_weights_are_compressed(config, dense_file, tmp_path):
    cfg = config(OUTPUT_DIR=tmp_path, **{"MODEL.WEIGHTS": dense_file})
    given = compress_weights(cfg)
    assert Path(cfg.MODEL.WEIGHTS) == dense_file  # untouched
    assert given.is_frozen() and Path(given.MODEL.WEIGHTS) == tmp_path / "start_norton-78.safetensors"
    expected = compress(load_weights(dense_file).state, CompressionSpec.preset("norton-78")).model.state_dict()
    found = open_weights(given.MODEL.WEIGHTS).state
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert open_weights(given.MODEL.WEIGHTS).described.num_classes == 10
    assert compress_weights(given) is given  # nothing left to do
    assert [path.name for path in tmp_path.iterdir()] == ["start_norton-78.safetensors"]


def test_what_is_left_alone(config, norton_64, dense_file, tmp_path):
    own = "build_resnet_fpn_backbone"
    for keys in (
        {},
        {"MODEL.WEIGHTS": norton_64},
        {"MODEL.WEIGHTS": dense_file, "MODEL.BACKBONE.NAME": own},
    ):
        cfg = config(OUTPUT_DIR=tmp_path, **keys)
        assert compress_weights(cfg) is cfg
    assert not list(tmp_path.iterdir())


def test_the_dense_baseline_gets_a_norton_checkpoint_too(config, dense_file, tmp_path):
    cfg = config("dense_faster_rcnn.yaml", OUTPUT_DIR=tmp_path, **{"MODEL.WEIGHTS": dense_file})
    given = compress_weights(cfg)
    assert open_weights(given.MODEL.WEIGHTS).described.spec.is_dense and compress_weights(given) is given
    state = load_weights(dense_file).state
    found = open_weights(given.MODEL.WEIGHTS).state
    assert all(torch.equal(found[name], state[name]) for name in state)
    # and it can be compressed later, though it carries a (dense) spec
    later = config(OUTPUT_DIR=tmp_path, **{"MODEL.WEIGHTS": given.MODEL.WEIGHTS})
    assert open_weights(compress_weights(later).MODEL.WEIGHTS).described.spec.name == "norton-78"


def test_a_dense_detector_keeps_neck_and_heads(config, tmp_path):
    dense = build_model(config("dense_faster_rcnn.yaml"))
    NortonCheckpointer(dense, str(tmp_path)).save("trained")
    keys = {"MODEL.WEIGHTS": tmp_path / "trained.pth", "MODEL.NORTON.PRESET": "dense", "OUTPUT_DIR": tmp_path / "out"}
    cfg = config(**keys, **{"MODEL.NORTON.RATIOS": "[0.]+[0.5]*19"})
    model = load_detector(compress_weights(cfg))  # whole: nothing is missing
    for part in ("roi_heads", "proposal_generator", "backbone.fpn_output2"):
        for name, tensor in dense.get_submodule(part).state_dict().items():
            assert torch.equal(model.get_submodule(part).state_dict()[name], tensor), name
    assert model.backbone.fpn_lateral2.weight.shape[1] == 128


def test_the_config_has_to_agree_before_anything_is_built(config, tmp_path):
    msra = classifier("dense", 0, stride_in_1x1=True)
    msra.preprocessing = MSRA
    file = save_checkpoint(tmp_path / "msra.safetensors", msra)
    cfg = config(OUTPUT_DIR=tmp_path / "out", **{"MODEL.WEIGHTS": file})
    for start in (compress_weights, NortonTrainer):
        with pytest.raises(InputError, match=r"wants input BGR .*, the config has RGB .*; set INPUT\.FORMAT BGR"):
            start(cfg)
    assert not (tmp_path / "out").exists()
    agreed = {"INPUT.FORMAT": "BGR", "MODEL.PIXEL_MEAN": MSRA.mean, "MODEL.PIXEL_STD": MSRA.std}
    agreed |= {"MODEL.RESNETS.STRIDE_IN_1X1": True}
    given = compress_weights(config(OUTPUT_DIR=tmp_path, **{"MODEL.WEIGHTS": file} | agreed))
    assert (
        open_weights(given.MODEL.WEIGHTS).described.preprocessing == MSRA
        and open_weights(given.MODEL.WEIGHTS).described.stride_in_1x1
    )
    with pytest.raises(InputError, match=r"expected the weights of MODEL\.WEIGHTS, found no such file"):
        check_weights(config(**{"MODEL.WEIGHTS": tmp_path / "none.pth"}))
    check_weights(config(**{"MODEL.WEIGHTS": "torchvision://resnet50"}))


def test_nothing_to_resume(config, tmp_path):
    assert resume_weights(config(OUTPUT_DIR=tmp_path)) is None


def test_a_classifier_is_fitted_to_training_pictures(fitted, dense_file, caplog):
    dense = load_weights(dense_file).build().eval()
    images = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    errors = []
    for count in (0, 7):
        cfg = fitted(**{"MODEL.WEIGHTS": dense_file, "MODEL.NORTON.CALIBRATION_IMAGES": count})
        with caplog.at_level(logging.WARNING):
            small = load_checkpoint(compress_weights(cfg).MODEL.WEIGHTS)
        assert small.spec.name == "norton-78"
        with torch.no_grad():
            errors.append((small(images) - dense(images)).square().mean().item())
    assert errors[1] < errors[0] / 2
    assert len(caplog.records) == 1 and "Skipped, cannot be read" in caplog.text


def test_a_trained_detector_is_fitted_to_training_pictures(fitted, config, tmp_path):
    dense = build_model(config("dense_faster_rcnn.yaml"))
    NortonCheckpointer(dense, str(tmp_path)).save("trained")
    start = {"MODEL.WEIGHTS": tmp_path / "trained.pth"}
    given = compress_weights(fitted(**start))
    laterals = [open_weights(given.MODEL.WEIGHTS).state["backbone.fpn_lateral5.bias"]]
    given = compress_weights(fitted(**start, **{"MODEL.NORTON.CALIBRATION_IMAGES": 0}))
    laterals.append(open_weights(given.MODEL.WEIGHTS).state["backbone.fpn_lateral5.bias"])
    assert not torch.equal(*laterals)  # they were fitted, too
    around = {"MODEL.NORTON.NECK_RANK": 1, "MODEL.NORTON.BOX_HEAD_RANK": 8, "MODEL.NORTON.CALIBRATION_IMAGES": 2}
    whole = load_detector(compress_weights(fitted(**start, **around)))
    assert len(find_layout(whole)) == 7


def test_pictures_to_fit_to_are_refused(fitted, dense_file, tmp_path):
    for path in (tmp_path / "norton_shapes" / "train2017").iterdir():
        path.write_bytes(b"")
    pattern = r"^DATASETS\.TRAIN norton_shapes_train: expected images, got 7 that cannot be read"
    with pytest.raises(InputError, match=pattern):
        compress_weights(fitted(**{"MODEL.WEIGHTS": dense_file}))
    assert not list((tmp_path / "out").glob("*"))


def test_pictures_are_drawn_by_the_seed(fitted):
    def drawn(most, **keys):
        return training_pictures(fitted(**keys), lambda image: image.tobytes(), most)

    one = drawn(7)
    assert len(set(one)) == 6 and drawn(7) == one  # the damaged one is passed over
    assert drawn(7, SEED=2) != one and set(drawn(7, SEED=2)) == set(one)
    assert drawn(3) == one[:3] and drawn(7, **{"MODEL.NORTON.CALIBRATION_IMAGES": 0}) is None


@pytest.mark.parametrize("size", [0, 24, 96, 400])
def test_pictures_of_any_size_will_do(fitted, size):
    calibration = _calibration(fitted(**{"INPUT.MIN_SIZE_TRAIN": (size,), "INPUT.MAX_SIZE_TRAIN": 500}))
    side = {0: 224, 24: 32, 96: 96, 400: 224}[size]
    assert calibration.images.shape == (6, 3, side, side)


def test_a_dense_detector_of_detectron2_keeps_its_heads_in_dense_training(fitted, tmp_path):
    """Its file says nothing of the input: that of Detectron2's own zoo is meant."""
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    zoo = build_model(cfg)
    torch.save({"model": zoo.state_dict()}, tmp_path / "zoo.pth")
    keys = {"INPUT.FORMAT": "BGR", "MODEL.PIXEL_MEAN": MSRA.mean, "MODEL.PIXEL_STD": MSRA.std}
    keys |= {"MODEL.RESNETS.STRIDE_IN_1X1": True, "MODEL.NORTON.PRESET": "dense"}
    given = compress_weights(fitted(**{"MODEL.WEIGHTS": tmp_path / "zoo.pth"} | keys))
    state = load_detector(given).state_dict()  # whole: nothing is missing
    for name in ("roi_heads.box_head.fc1.weight", "backbone.fpn_lateral2.weight", "backbone.bottom_up.conv1.weight"):
        assert torch.equal(state[name], zoo.state_dict()[name.replace("bottom_up.conv1", "bottom_up.stem.conv1")])


def test_of_torchvisions_detectors_the_resnet_alone_is_taken(fitted, tmp_path):
    torch.manual_seed(0)
    dense = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(dense.state_dict(), tmp_path / "torchvision.pth")
    ranks = {"MODEL.NORTON.NECK_RANK": 1, "MODEL.NORTON.BOX_HEAD_RANK": 8, "MODEL.NORTON.CALIBRATION_IMAGES": 0}
    given = compress_weights(fitted(**{"MODEL.WEIGHTS": tmp_path / "torchvision.pth"}, **ranks))
    assert not any(name.startswith(("roi_heads", "rpn")) for name in open_weights(given.MODEL.WEIGHTS).state)
    assert len(find_layout(build_detector(given))) == 7

"""Weights that are compressed on the way to training, by themselves or fitted to training pictures."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from norton_det.checkpoint import load_checkpoint, read_info, read_tensors, save_checkpoint
from norton_det.compress import compress
from norton_det.d2 import NortonCheckpointer, NortonTrainer, load_detector
from norton_det.d2.engine import check_weights
from norton_det.d2.start import compress_weights, resume_weights
from norton_det.data import generate_dataset, register_generated
from norton_det.errors import InputError
from norton_det.preprocessing import MSRA
from norton_det.spec import CompressionSpec
from norton_det.surgery import find_layout
from norton_det.weights import load_weights

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
    found = read_tensors(given.MODEL.WEIGHTS)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert read_info(given.MODEL.WEIGHTS).num_classes == 10
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
    assert read_info(given.MODEL.WEIGHTS).spec.is_dense and compress_weights(given) is given
    state = load_weights(dense_file).state
    found = read_tensors(given.MODEL.WEIGHTS)
    assert all(torch.equal(found[name], state[name]) for name in state)
    # and it can be compressed later, though it carries a (dense) spec
    later = config(OUTPUT_DIR=tmp_path, **{"MODEL.WEIGHTS": given.MODEL.WEIGHTS})
    assert read_info(compress_weights(later).MODEL.WEIGHTS).spec.name == "norton-78"


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
    cfg = compress_weights(config(OUTPUT_DIR=tmp_path, **{"MODEL.WEIGHTS": file}))
    assert read_info(cfg.MODEL.WEIGHTS).preprocessing == MSRA and read_info(cfg.MODEL.WEIGHTS).stride_in_1x1
    with pytest.raises(InputError, match="wants input BGR"):
        NortonTrainer(cfg)
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
    assert len(caplog.records) == 1 and "expected an image, got a damaged" in caplog.text


def test_a_trained_detector_is_fitted_to_training_pictures(fitted, config, tmp_path):
    dense = build_model(config("dense_faster_rcnn.yaml"))
    NortonCheckpointer(dense, str(tmp_path)).save("trained")
    start = {"MODEL.WEIGHTS": tmp_path / "trained.pth"}
    given = compress_weights(fitted(**start))
    laterals = [read_tensors(given.MODEL.WEIGHTS)["backbone.fpn_lateral5.bias"]]
    given = compress_weights(fitted(**start, **{"MODEL.NORTON.CALIBRATION_IMAGES": 0}))
    laterals.append(read_tensors(given.MODEL.WEIGHTS)["backbone.fpn_lateral5.bias"])
    assert not torch.equal(*laterals)  # they were fitted, too
    around = {"MODEL.NORTON.NECK_RANK": 1, "MODEL.NORTON.BOX_HEAD_RANK": 8, "MODEL.NORTON.CALIBRATION_IMAGES": 2}
    whole = load_detector(compress_weights(fitted(**start, **around)))
    assert len(find_layout(whole)) == 7


def test_pictures_to_fit_to_are_refused(fitted, dense_file, tmp_path):
    with pytest.raises(InputError, match=r"^MODEL\.NORTON\.CALIBRATION_IMAGES: expected 0 or more, got -1; use 0"):
        compress_weights(fitted(**{"MODEL.WEIGHTS": dense_file, "MODEL.NORTON.CALIBRATION_IMAGES": -1}))
    for path in (tmp_path / "norton_shapes" / "train2017").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"expected pictures, got none that can be read"):
        compress_weights(fitted(**{"MODEL.WEIGHTS": dense_file}))
    assert not list((tmp_path / "out").glob("*"))

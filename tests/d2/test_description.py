"""A Detectron2 detector's file says all that its weights do not; zoo files without a word are read by their tensors."""

import pickle

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import norton_det as nd
from norton_det.d2 import NortonCheckpointer, add_norton_config
from norton_det.d2.build import build_detector
from norton_det.d2.description import config_fields, config_on
from norton_det.deploy.info import describe
from norton_det.deploy.loading import load_detector
from norton_det.models.labels import Labels, labels_of, set_labels
from norton_det.models.stacks import stack_of
from norton_det.utils.errors import InputError

from .conftest import SMALL

OTHERS = {
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 160,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0]],
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.RPN.NMS_THRESH": 0.6,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
}
LABELS = Labels(("cat", "dog"), (17, 18))


@pytest.fixture(scope="module")
def detector(config):
    torch.manual_seed(0)
    cfg = config("norton_faster_rcnn.yaml", **OTHERS, **{"MODEL.NORTON.NECK_RANK": 1})
    model = build_detector(cfg).eval()
    set_labels(model, LABELS)
    return model


def picture() -> list[dict[str, torch.Tensor]]:
    return [{"image": torch.rand(3, 96, 120, generator=torch.Generator().manual_seed(1)) * 255}]


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    with torch.no_grad():
        expected, got = (model(picture())[0]["instances"] for model in (one, other))
    return len(expected) > 0 and torch.equal(expected.pred_boxes.tensor, got.pred_boxes.tensor)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_nothing_is_lost(detector, kind, tmp_path):
    """Of a training's checkpoint and of a norton file, without a config."""
    path = tmp_path / f"detector.{kind}"
    if kind == "pth":
        NortonCheckpointer(detector, str(tmp_path)).save("detector")
    else:
        nd.save_checkpoint(path, detector)
    again = load_detector(str(path))
    assert labels_of(again) == LABELS and same(detector, again)
    info = describe(again)
    assert (info.min_size, info.max_size, info.color) == (96, 160, "RGB")
    assert (info.classes, info.category_ids) == (("cat", "dog"), (17, 18))
    changed = load_detector(str(path), None, ["INPUT.MIN_SIZE_TEST", "64"])
    assert describe(changed).min_size == 64


def test_a_config_that_says_otherwise_is_told(detector, tmp_path, caplog):
    path = nd.save_checkpoint(tmp_path / "detector.safetensors", detector)
    words = [word for key, value in OTHERS.items() for word in (key, str(value))]
    load_detector(str(path), "norton_faster_rcnn.yaml", [*words, "INPUT.MIN_SIZE_TEST", "128", "MODEL.DEVICE", "cpu"])
    told = [record.getMessage() for record in caplog.records if "says otherwise" in record.getMessage()]
    assert len(told) == 1 and "INPUT.MIN_SIZE_TEST 128 (the file: 96)" in told[0]


def test_a_config_that_says_the_same_is_not_told(detector, tmp_path, caplog):
    path = nd.save_checkpoint(tmp_path / "detector.safetensors", detector)
    words = [word for key, value in (SMALL | OTHERS).items() for word in (key, str(value))]
    load_detector(str(path), "norton_faster_rcnn.yaml", words)
    assert not [record for record in caplog.records if "says otherwise" in record.getMessage()]


def test_a_threshold_that_was_changed_on_the_detector(detector, config, tmp_path):
    model = build_detector(config("norton_faster_rcnn.yaml", **OTHERS)).eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.25
    again = nd.load_checkpoint(nd.save_checkpoint(tmp_path / "x.safetensors", model, classes=["a", "b"]))
    assert again.roi_heads.box_predictor.test_score_thresh == 0.25 and labels_of(again).classes == ("a", "b")


def test_a_detector_that_detectron2_built(tmp_path):
    """It does not know its config, which has to be given; a config of another network is refused."""
    cfg = get_cfg()
    add_norton_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"))
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 32, 0.0
    model = build_model(cfg).eval()
    small = nd.compress_detector(model, "norton-78", neck_rank=None, box_head_rank=None).model
    path = tmp_path / "small.safetensors"
    with pytest.raises(InputError, match=r"expected the config that it was built from.* give config=cfg"):
        nd.save_checkpoint(path, small)
    again = nd.load_checkpoint(nd.save_checkpoint(path, small, config=cfg))
    assert same(small, again) and describe(again).color == "BGR"
    dense = nd.load_checkpoint(nd.save_checkpoint(path, model, config=cfg))  # its own ResNet, by this package's names
    assert same(model, dense)
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    with pytest.raises(InputError, match="expected the network of its config, got another one"):
        nd.save_checkpoint(path, small, config=cfg)


ZOO = {
    "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml": (80, 0),
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml": (80, 0),
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml": (1, 17),
    "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml": (80, 0),
}


@pytest.mark.parametrize("name", ZOO)
def test_files_of_the_zoo_need_no_config(name, tmp_path):
    """Random values in their form: arrays in a pickle, BGR, the stride in the 1x1, no word of sizes or classes."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    again = load_detector(str(path))
    stack = stack_of(again)
    with torch.no_grad():
        for expected, got in zip(
            *(stack.image_features(which, picture())[1].values() for which in (model, again)), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    loaded = again.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items() if name in loaded)
    read, expected = (config_fields(which, norton=True) for which in (config_on(again), cfg))
    of_training = ("SMOOTH_L1", "POST_NMS_TOPK_TRAIN", "IOUS", "MIN_SIZE_TRAIN")  # and what has no effect without masks
    different = {key for key in {*read, *expected} if read.get(key) != expected.get(key)}
    assert not [key for key in different if not any(word in key for word in (*of_training, "ROI_MASK_HEAD"))]
    info, (classes, keypoints) = describe(again), ZOO[name]
    assert (info.min_size, info.max_size, info.color) == (800, 1333, "BGR")
    assert info.classes[0] == "person" and info.category_ids[0] == 1
    assert (len(info.classes), len(info.keypoints)) == (classes, keypoints)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("roi_heads.box_predictor", "expected a whole detector, got no box head"),
        ("backbone.fpn_lateral", "expected an R-CNN with FPN, got another detector; give --config"),
    ],
)
def test_parts_of_a_detector_are_refused(detector, left_out, message, tmp_path):
    state = {name: tensor for name, tensor in detector.state_dict().items() if not name.startswith(left_out)}
    torch.save({"model": state}, tmp_path / "part.pth")
    with pytest.raises(InputError, match=message):
        load_detector(str(tmp_path / "part.pth"))


def test_damaged_fields(detector, tmp_path):
    from norton_det.checkpoint.tensor_file import read_safetensors, write_tensors

    path = nd.save_checkpoint(tmp_path / "x.safetensors", detector)
    fields, tensors = read_safetensors(path)
    for config, message in (
        ({"MODEL.NOPE": 1}, "detector: MODEL.NOPE: expected a key of Detectron2"),
        ({"MODEL.WEIGHTS": "x"}, "expected keys of MODEL, INPUT and TEST"),
        ({"INPUT.MIN_SIZE_TEST": "a"}, "detector: INPUT.MIN_SIZE_TEST: "),
        ([], "expected keys of MODEL, INPUT and TEST"),
    ):
        write_tensors(path, tensors, fields | {"detector": {"config": config}})
        with pytest.raises(InputError, match=message) as caught:
            load_detector(str(path))
        assert "\n" not in str(caught.value)

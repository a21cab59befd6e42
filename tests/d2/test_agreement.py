"""The network that trains is the one that was given: configs of Detectron2's own with compressed files, files of its
zoo in every network, and inputs that the file, its pixel_mean or its family contradict."""

import functools
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model

from norton_det.checkpoint.save import save_checkpoint, save_detector
from norton_det.d2 import NortonCheckpointer, NortonTrainer, add_norton_config, load_config, load_detector
from norton_det.d2.agreement import check_agreement
from norton_det.d2.build import build_detector, check_weights
from norton_det.d2.initial_weights import compress_weights
from norton_det.models.keys import torchvision_to_d2
from norton_det.models.preprocessing import MSRA, TORCHVISION
from norton_det.utils.errors import InputError

from .conftest import classifier

FPN, C4, DC5 = (f"COCO-Detection/faster_rcnn_R_50_{kind}_1x.yaml" for kind in ("FPN", "C4", "DC5"))
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
RGB = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "[123.675,116.28,103.53]", "MODEL.PIXEL_STD", "[58.395,57.12,57.375]"]
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"]


def of_zoo(file: str, weights: object = "", *opts: str):
    return load_config(get_config_file(file), [*SMALL, "MODEL.WEIGHTS", str(weights), *opts])


@functools.cache
def random_state(file: str) -> dict[str, np.ndarray]:
    """Random weights of a network, each tensor another."""
    torch.manual_seed(3)
    state = build_model(of_zoo(file)).state_dict()
    return {name: tensor.numpy() for name, tensor in state.items() if "num_batches" not in name}


@pytest.fixture
def zoo_file(tmp_path):
    """``zoo_file(config)``: a detector of Detectron2's zoo with random weights, in the form of its files."""

    def make(file: str, means: bool = True, author: str = "Detectron2 Model Zoo", without: str = ""):
        state = {name: tensor for name, tensor in random_state(file).items() if name != without}
        if means:
            state |= {"pixel_mean": np.float32(MSRA.mean).reshape(3, 1, 1)}
            state |= {"pixel_std": np.float32(MSRA.std).reshape(3, 1, 1)}
        content = {"model": state} | ({"__author__": author} if author else {})
        (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
        return tmp_path / "zoo.pkl"

    return make


def test_a_compressed_file_in_a_config_of_the_zoo(norton_64, caplog, tmp_path):
    cfg = of_zoo(FPN, norton_64)
    assert cfg.is_frozen() and cfg.MODEL.BACKBONE.NAME == "build_norton_resnet_fpn_backbone"
    assert (cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == ("RGB", False)
    assert tuple(cfg.MODEL.PIXEL_STD) == TORCHVISION.std
    told = (
        "used with MODEL.BACKBONE.NAME build_norton_resnet_fpn_backbone MODEL.RESNETS.STRIDE_IN_1X1 False INPUT.FORMAT"
    )
    assert told in caplog.text
    detector = build_detector(cfg)
    NortonCheckpointer(detector).load(str(norton_64))
    assert detector.backbone.bottom_up.spec.name == "norton-64" and detector.input_format == "RGB"


def test_in_scripts_of_ones_own(norton_64):
    cfg = get_cfg()
    add_norton_config(cfg)
    cfg.merge_from_file(get_config_file(FPN))
    cfg.merge_from_list([*SMALL, "MODEL.WEIGHTS", str(norton_64)])
    assert build_detector(cfg).backbone.bottom_up.spec.name == "norton-64"
    assert compress_weights(cfg).MODEL.BACKBONE.NAME == "build_norton_resnet_fpn_backbone"
    with pytest.raises(InputError, match=r"has a compressed ResNet, .* set MODEL\.BACKBONE\.NAME build_norton_resnet_"):
        NortonCheckpointer(build_model(cfg)).load(str(norton_64))  # nothing was asked on the way


@pytest.mark.parametrize(
    ("file", "opts", "pattern"),
    [
        (
            RETINANET,
            (),
            r"MODEL\.BACKBONE\.NAME build_retinanet_resnet_fpn_backbone; set MODEL\.BACKBONE\.NAME build_n",
        ),
        (FPN, ("MODEL.PIXEL_MEAN", "[1,2,3]"), r"wants input RGB .* got|set INPUT\.FORMAT RGB MODEL\.PIXEL_MEAN \[123"),
    ],
)
def test_what_a_file_cannot_be_used_with(norton_64, file, opts, pattern):
    with pytest.raises(InputError, match=pattern):
        build_detector(of_zoo(file, norton_64, *opts))


@pytest.mark.parametrize("file", [FPN, C4, DC5, RETINANET])
def test_files_of_the_zoo_in_their_own_network(zoo_file, file):
    """All tensors are taken; one that is missing is an error, and starts anew with --partial."""
    expected = random_state(file)
    model = load_detector(of_zoo(file, zoo_file(file)))
    found = model.state_dict()
    assert found.keys() >= expected.keys()
    assert all(np.array_equal(found[name].numpy(), expected[name]) for name in expected)
    lacking = next(name for name in expected if name.startswith(("proposal_generator.rpn_head.", "head.cls_subnet")))
    path = str(zoo_file(file, without=lacking))
    with pytest.raises(InputError, match=rf"1 tensors of the detector are missing \(first: {lacking}\); .*--partial"):
        NortonCheckpointer(model).load(path)
    NortonCheckpointer(model, partial=True).load(path)


def test_a_dense_detector_of_this_package_in_detectron2s_own_network(tmp_path):
    opts = [*SMALL, "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.WEIGHTS"]
    dense = build_detector(load_config("dense_faster_rcnn.yaml", [*opts, ""]))
    save_detector(tmp_path / "dense.safetensors", dense)
    own = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
    found = load_detector(load_config("dense_faster_rcnn.yaml", [*opts, str(tmp_path / "dense.safetensors"), *own]))
    assert torch.equal(found.backbone.bottom_up.res3[0].conv1.weight, dense.backbone.bottom_up.layer2[0].conv1.weight)
    assert torch.equal(found.roi_heads.box_head.fc1.weight, dense.roi_heads.box_head.fc1.weight)
    with pytest.raises(InputError, match=r"wants input RGB .*; set INPUT\.FORMAT RGB"):
        check_weights(of_zoo(FPN, tmp_path / "dense.safetensors", "INPUT.FORMAT", "BGR"))


def test_a_classifier_in_every_network_of_detectron2s(tmp_path):
    """The last stage of a C4 detector is in its heads."""
    resnet = classifier("dense")
    torch.save(resnet.state_dict(), tmp_path / "resnet50.pth")
    for file, name in ((FPN, "backbone.bottom_up.res5.2.conv3.weight"), (C4, "roi_heads.res5.2.conv3.weight")):
        model = build_model(of_zoo(file))
        NortonCheckpointer(model).load(str(tmp_path / "resnet50.pth"))
        assert torch.equal(model.state_dict()[name], resnet.layer4[2].conv3.weight)
    state = {name: tensor for name, tensor in resnet.state_dict().items() if name != "layer2.1.bn1.weight"}
    torch.save(state, tmp_path / "resnet50.pth")
    with pytest.raises(InputError, match=r"layer2\.1\.bn1\.weight|res3\.1\.conv1\.norm\.weight"):
        NortonCheckpointer(model).load(str(tmp_path / "resnet50.pth"))


@pytest.mark.parametrize(
    ("means", "author", "refused"),
    [(True, "Detectron2 Model Zoo", True), (False, "Detectron2 Model Zoo", True), (True, "", True), (False, "", False)],
)
def test_the_input_of_a_file_of_the_zoo(zoo_file, means, author, refused):
    """BGR, by its pixel_mean or its author; a detector that says neither is of a training with the config."""
    path = zoo_file(FPN, means, author)
    norton = load_config("dense_faster_rcnn.yaml", [*SMALL, "MODEL.WEIGHTS", str(path)])
    own = of_zoo(FPN, path, *RGB)
    for cfg in (norton, own):
        if refused:
            with pytest.raises(InputError, match=r"wants input BGR .*; set INPUT\.FORMAT BGR MODEL\.PIXEL_MEAN \[103"):
                check_weights(cfg)
        else:
            check_weights(cfg)
    if not (means and author):
        return
    stride = "MODEL.RESNETS.STRIDE_IN_1X1"
    for start in (load_detector, NortonTrainer, compress_weights):
        with pytest.raises(InputError, match=rf"set INPUT.*{stride} True$"):
            start(norton)


def test_msra_weights_in_a_config_that_reads_rgb(tmp_path):
    state = {torchvision_to_d2(name): tensor.numpy() for name, tensor in classifier("dense", 0).state_dict().items()}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "Caffe2"}))
    check_weights(of_zoo(FPN, tmp_path / "R-50.pkl"))
    with pytest.raises(InputError, match=r"R-50\.pkl: wants input BGR"):
        check_weights(of_zoo(FPN, tmp_path / "R-50.pkl", *RGB))


def test_all_keys_are_named_at_once(tmp_path):
    msra = classifier("norton-64", 0, stride_in_1x1=True)
    msra.preprocessing = MSRA
    path = save_checkpoint(tmp_path / "msra.safetensors", msra)
    cfg = load_config("norton_faster_rcnn.yaml", ["MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu"])
    with pytest.raises(InputError, match=r"set INPUT\.FORMAT BGR .* MODEL\.RESNETS\.STRIDE_IN_1X1 True$"):
        check_agreement(cfg, "resnet50", MSRA, True)

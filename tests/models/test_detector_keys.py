"""Names of whole detectors: those of older torchvision, those of other projects."""

import re

import pytest
import torch
from torchvision.models import detection

from norton_det.models.detector_keys import FAMILIES, current_names, family_of, split_prefix
from norton_det.models.keys import find_resnet

BUILDERS = {
    "faster": detection.fasterrcnn_resnet50_fpn,
    "mask": detection.maskrcnn_resnet50_fpn,
    "keypoint": detection.keypointrcnn_resnet50_fpn,
}


def old_name(name: str) -> str:
    """The name that torchvision 0.12 gave a parameter, as in its published COCO files."""
    name = re.sub(r"(backbone\.fpn\.\w+_blocks\.\d)\.0\.", r"\1.", name)
    name = re.sub(r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", name)
    return re.sub(r"(mask_head)\.(\d)\.0\.", lambda match: f"{match[1]}.mask_fcn{int(match[2]) + 1}.", name)


@pytest.mark.parametrize("kind", BUILDERS)
def test_old_names_become_those_that_torchvision_makes_of_them(kind):
    with torch.device("meta"):
        model = BUILDERS[kind](weights=None, weights_backbone=None)
    state = model.state_dict()
    old = {old_name(name): tensor for name, tensor in state.items()}
    assert len(set(state) - set(old)) >= 18 and len(old) == len(state)
    assert model.load_state_dict(old, assign=True).missing_keys == []  # torchvision's own renaming
    assert list(current_names(old)) == list(state) and current_names(state) == state
    assert all(current_names(old)[name] is state[name] for name in state)


def test_prefixes_split_into_wrapper_and_role():
    assert split_prefix("") == ("", "") and split_prefix("module.") == ("module.", "")
    assert split_prefix("model.backbone.bottom_up.") == ("model.", "backbone.bottom_up.")
    assert split_prefix("backbone.body.") == ("", "backbone.body.")
    assert split_prefix("backbone.backbone.") == ("backbone.", "backbone.")
    assert split_prefix("my_backbone.") == ("my_backbone.", "")


@pytest.mark.parametrize("kind", BUILDERS)
def test_detectors_of_both_stacks_are_of_no_other_family(kind):
    with torch.device("meta"):
        names = list(BUILDERS[kind](weights=None, weights_backbone=None).state_dict())
    assert family_of(names, ()) is None and family_of([old_name(name) for name in names], ()) is None
    d2 = [
        "backbone.bottom_up.res2.0.conv1.weight",
        "backbone.fpn_output2.bias",
        "proposal_generator.rpn_head.conv.bias",
    ]
    d2 += ["roi_heads.box_predictor.cls_score.bias", "roi_heads.mask_head.mask_fcn1.weight", "pixel_mean"]
    assert family_of(d2, [f"modelStudent.{name}" for name in d2[:1]]) is None


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("backbone.body.stem.conv1.weight", "maskrcnn-benchmark"),
        ("roi_heads.box.predictor.cls_score.weight", "maskrcnn-benchmark"),
        ("neck.lateral_convs.0.conv.weight", "MMDetection"),
        ("bbox_head.fc_cls.weight", "MMDetection"),
        ("backbone.res4.0.conv1.weight", "C4 or DC5"),
        ("head.classification_head.conv.0.0.weight", "RetinaNet"),
        ("decode_head.conv_seg.weight", "MMSegmentation"),
        ("conv_rpn_fpn2_w", "Caffe2"),
        ("head.last_layer.weight_g", "DINO"),
        ("fc.0.weight", "self-supervised"),
    ],
)
def test_families_are_known_by_a_name(name, family):
    assert family in family_of(["conv1.weight", name], ()).name


def test_a_name_beside_the_network_tells_its_family_too():
    assert family_of(["layer1.0.conv1.weight"], ["model.transformer.encoder.x", "y"]).name == "a DETR detector"
    assert family_of(["layer1.0.conv1.weight"], ["state_dict.module.queue"]).name == "MoCo"
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_numbered_children_are_a_resnet():
    """``Sequential(*resnet.children())``, as self-supervised trainings cut off the classifier."""
    from torchvision.models import resnet18

    with torch.device("meta"):
        model = resnet18()
        cut = torch.nn.Sequential(*list(model.children())[:-1])
    state = {f"backbone.{name}": tensor for name, tensor in cut.state_dict().items()}
    resnet = find_resnet(state | {"projection_head.layers.0.weight": torch.zeros(1)})
    assert resnet.prefix == "backbone." and list(resnet.rest) == ["projection_head.layers.0.weight"]
    assert list(resnet.state) == [name for name in model.state_dict() if not name.startswith("fc.")]

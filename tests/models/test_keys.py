"""Name maps are bijections; the ResNet is found in the states of either detection stack."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from norton_det.models import keys
from norton_det.models.architecture import ARCHITECTURES
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError


@pytest.fixture(scope="module")
def names() -> list[str]:
    with torch.device("meta"):
        return list(torchvision.models.resnet50().state_dict())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_names_map_onto_those_of_detectron2s_own_network(arch):
    """Batch normalisation and a classifier included: every name of one is exactly one name of the other."""
    resnet = pytest.importorskip("detectron2.modeling.backbone.resnet", reason="needs Detectron2")
    depth = int(arch.removeprefix("resnet"))
    with torch.device("meta"):
        names = list(getattr(torchvision.models, arch)().state_dict())
        stages = resnet.ResNet.make_default_stages(depth, norm="BN")
        theirs = list(resnet.ResNet(resnet.BasicStem(norm="BN"), stages, num_classes=1000).state_dict())
    mapped = [keys.torchvision_to_d2(name) for name in names]
    assert sorted(mapped) == sorted(theirs)
    assert [keys.d2_to_torchvision(name) for name in mapped] == names


@given(st.sampled_from(list(ARCHITECTURES)), st.data())
@settings(max_examples=10)
def test_names_of_any_compressed_network_map_both_ways(arch, data):
    """Whichever convolutions are factored: no two names become one, and each comes back."""
    count = len(ARCHITECTURES[arch].factored)
    ranks = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    with torch.device("meta"):
        state = NortonResNet(CompressionSpec.parse(ranks, None, arch)).state_dict()
    mapped = [keys.torchvision_to_d2(name) for name in state]
    assert len(set(mapped)) == len(mapped) and not set(mapped) & set(state)
    assert [keys.d2_to_torchvision(name) for name in mapped] == list(state)
    factored = sum(name.endswith(".vertical.weight") for name in mapped)
    assert factored == sum(rank > 0 for rank in ranks)


def test_caffe2_names_agree_with_detectron2(names):
    loading = pytest.importorskip("detectron2.checkpoint.c2_model_loading", reason="needs Detectron2")
    blobs = ["conv1_w", "res_conv1_bn_s", "res_conv1_bn_b", "res_conv1_bn_running_var", "res5_2_branch2c_bn_riv"]
    blobs += [f"res{stage}_0_branch{branch}" for stage in (2, 4) for branch in ("1_w", "2a_w", "2b_bn_s", "2c_bn_rm")]
    blobs += ["res3_3_branch2b_bn_gamma", "res3_3_branch2b_bn_beta", "res2_0_branch1_bn_b"]
    for blob, expected in zip(blobs, loading.convert_basic_c2_names(blobs), strict=True):
        assert keys.torchvision_to_d2(keys.caffe2_to_torchvision(blob)) == expected
        assert keys.caffe2_to_torchvision(blob) in names


@pytest.mark.parametrize(
    "convert", [keys.torchvision_to_d2, keys.d2_to_torchvision, keys.caffe2_to_torchvision], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", ["", "layer5.0.conv1.weight", "layer1.0.se.weight", "res2_0_branch2a_gn_s", "res1.x"])
def test_unknown_names_are_refused(convert, name):
    with pytest.raises(InputError, match=r"expected a (name|blob) of"):
        convert(name)


def test_split_torchvision_detector(names):
    with torch.device("meta"):
        state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    before = list(state)
    prefix, resnet, rest = keys.split_detector_state(state)
    assert prefix == "backbone.body." and list(state) == before
    trained = {name for name in names if not name.startswith("fc.")}
    assert set(resnet) | {name for name in trained if name.endswith("num_batches_tracked")} == trained
    assert {f"{prefix}{name}" for name in resnet} | set(rest) == set(state)
    assert "backbone.fpn.inner_blocks.0.0.weight" in rest


@pytest.mark.parametrize("scheme", ["torchvision", "detectron2"])
@pytest.mark.parametrize("prefix", ["backbone.bottom_up.", "module.backbone.bottom_up.", "backbone.", ""])
def test_split_reads_both_schemes_under_each_prefix(names, scheme, prefix):
    inner = names if scheme == "torchvision" else [keys.torchvision_to_d2(name) for name in names]
    state = {f"{prefix}{name}": torch.tensor(float(index)) for index, name in enumerate(inner)}
    others = {"backbone.fpn_lateral2.weight": torch.zeros(1), "proposal_generator.rpn_head.conv.weight": torch.zeros(1)}
    found, resnet, rest = keys.split_detector_state(others | state)
    assert found == prefix and rest == others
    assert {name: int(value) for name, value in resnet.items()} == {name: i for i, name in enumerate(names)}


def test_split_refuses_what_holds_no_such_resnet(names):
    with pytest.raises(InputError, match=r"expected ResNet-18, -34, -50, -101 or -152 weights, got no tensors"):
        keys.split_detector_state({})
    state = {name: torch.zeros(1) for name in names}
    with pytest.raises(InputError, match=r"^layer1\.0\.se\.fc1\.weight: expected only layers"):
        keys.split_detector_state(state | {"layer1.0.se.fc1.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="fused"):
        keys.split_detector_state(state | {"layer1.0.conv2.1.bias": torch.zeros(1)})

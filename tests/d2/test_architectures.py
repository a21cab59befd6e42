"""ResNets other than ResNet-50 as backbones of Detectron2: a training step, and Detectron2's own network compressed."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from norton_det.checkpoint.save import save_checkpoint
from norton_det.compression.detector import compress_detector
from norton_det.d2 import NortonCheckpointer, load_detector
from norton_det.d2.config import info_from_config
from norton_det.d2.initial_weights import compress_weights
from norton_det.models.keys import torchvision_to_d2
from norton_det.models.layers import CPConv2d
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

DEPTHS = (18, 34, 101)


def training_input() -> list[dict]:
    """One picture with one object of class 1."""
    found = Instances((128, 160), gt_boxes=Boxes(torch.tensor([[20.0, 16.0, 90.0, 80.0]])))
    found.gt_classes = torch.tensor([1])
    pixels = 255 * torch.rand(3, 128, 160, generator=torch.Generator().manual_seed(0))
    return [{"image": pixels, "instances": found}]


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_training_step(config, depth):
    torch.manual_seed(0)
    norm = {"MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 0}
    model = build_model(config(f"norton_faster_rcnn_resnet{depth}.yaml", **norm)).train()
    resnet = model.backbone.bottom_up
    assert resnet.spec == CompressionSpec.preset("norton-78", f"resnet{depth}")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {name: parameter.detach().clone() for name, parameter in resnet.named_parameters()}
    with EventStorage():
        losses = model(training_input())
    sum(losses.values()).backward()
    optimizer.step()
    assert len(losses) == 4 and all(torch.isfinite(loss) for loss in losses.values())
    changed = {name for name, parameter in resnet.named_parameters() if not torch.equal(before[name], parameter)}
    assert changed == set(before)
    factored = [name for name, module in resnet.named_modules() if isinstance(module, CPConv2d)]
    assert factored == list(resnet.spec.architecture.factored)


@pytest.mark.parametrize("depth", DEPTHS)
def test_both_stacks_compute_the_same(config, depth):
    keys = {"MODEL.NORTON.PRESET": "dense", "MODEL.BACKBONE.NAME": "build_norton_resnet_backbone"}
    cfg = config(f"dense_faster_rcnn_resnet{depth}.yaml", **keys, **{"MODEL.BACKBONE.FREEZE_AT": 0})
    torch.manual_seed(1)
    ours = NortonResNet(CompressionSpec.dense(f"resnet{depth}"), 0).eval()
    theirs = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    state = {name: tensor for name, tensor in ours.state_dict().items() if not name.endswith("num_batches_tracked")}
    theirs.load_state_dict({torchvision_to_d2(name): tensor for name, tensor in state.items()}, strict=True)
    image = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, expected = ours.forward_features(image), theirs(image)
    for name, features in expected.items():
        torch.testing.assert_close(found[name], features, rtol=1e-4, atol=1e-4)


def test_a_config_of_another_depth_than_the_weights_is_refused_before_anything_is_done(config, tmp_path):
    small = NortonResNet(CompressionSpec.preset("norton-78", "resnet34"), 0)
    file, dense = save_checkpoint(tmp_path / "small.safetensors", small), tmp_path / "resnet34.pth"
    torch.save(NortonResNet(CompressionSpec.dense("resnet34"), 0).state_dict(), dense)
    cfg = config("norton_faster_rcnn_resnet18.yaml", **{"MODEL.WEIGHTS": file})
    with pytest.raises(InputError, match=r"is a resnet34, the config has MODEL\.RESNETS\.DEPTH 18; set .*DEPTH 34"):
        info_from_config(cfg)
    cfg = config("norton_faster_rcnn_resnet18.yaml", **{"MODEL.WEIGHTS": dense, "OUTPUT_DIR": tmp_path})
    with pytest.raises(InputError, match=r"resnet34\.pth: is a resnet34, the config has MODEL\.RESNETS\.DEPTH 18"):
        compress_weights(cfg)
    with pytest.raises(InputError, match="RES2_OUT_CHANNELS: expected 64 for resnet18, got 256; set it to 64"):
        info_from_config(config(**{"MODEL.RESNETS.DEPTH": 18}))


def test_detectron2s_own_resnet18_is_compressed_saved_and_loaded(config, tmp_path):
    torch.manual_seed(0)
    keys = {"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone"}
    own = build_model(config("dense_faster_rcnn_resnet18.yaml", **keys)).eval()
    spec = CompressionSpec.parse(None, "[0.25]*11", "resnet18")
    model = compress_detector(own, spec, box_head_rank=16).model
    assert model.backbone.bottom_up.spec == spec
    assert model.backbone.fpn_lateral2.in_channels == spec.widths().stages[0] == 48
    NortonCheckpointer(model, str(tmp_path)).save("small")
    weights = tmp_path / "small.pth"
    again = load_detector(config("norton_faster_rcnn_resnet18.yaml", **{"MODEL.WEIGHTS": weights}))
    image = {"image": training_input()[0]["image"]}
    with torch.no_grad():
        found, expected = again([image])[0]["instances"], model([image])[0]["instances"]
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert len(found) == len(expected)

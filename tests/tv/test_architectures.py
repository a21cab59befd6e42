"""ResNets other than ResNet-50 in torchvision's detectors: a training step, and a whole detector compressed."""

import pytest
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from norton_det.compression.detector import compress_detector
from norton_det.models.complexity import count_complexity
from norton_det.models.layers import CPConv2d
from norton_det.models.spec import CompressionSpec
from norton_det.tv import fasterrcnn_norton_resnet50_fpn, save_detector

SMALL = {"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_train": 40, "rpn_post_nms_top_n_test": 40}


def images() -> list[torch.Tensor]:
    return list(torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet101"])
def test_a_training_step(arch):
    torch.manual_seed(0)
    spec = CompressionSpec.preset("norton-78", arch)
    model = fasterrcnn_norton_resnet50_fpn(spec=spec, num_classes=3, **SMALL).train()
    boxes = torch.tensor([[4.0, 6.0, 44.0, 50.0]])
    losses = model(images(), [{"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64)}] * 2)
    assert len(losses) == 4 and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    resnet = model.backbone.body
    factored = [name for name, module in resnet.named_modules() if isinstance(module, CPConv2d)]
    assert factored == list(spec.architecture.factored)
    for name in factored:
        for part in ("pointwise", "vertical", "horizontal"):
            assert resnet.get_submodule(f"{name}.{part}").weight.grad.abs().max() > 0, name


def test_torchvisions_own_resnet18_is_compressed_whole(tmp_path):
    torch.manual_seed(0)
    own = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5), 3, **SMALL).eval()
    spec = CompressionSpec.parse(1, "[0.9]*11", "resnet18")
    options = {"neck_rank": None, "box_head_rank": None}  # not what is at stake here, and slow to fit
    result = compress_detector(own, spec, calibration=images(), starts=1, **options)
    assert result.report.macs[1] == count_complexity(result.model, (3, 800, 800)).macs < 0.8 * result.report.macs[0]
    assert result.model.backbone.body.layer1[0].conv1.in_channels == spec.widths().stem == 6
    save_detector(tmp_path / "small.safetensors", result.model)
    again = fasterrcnn_norton_resnet50_fpn(weights=tmp_path / "small.safetensors", **SMALL).eval()
    with torch.no_grad():
        for found, expected in zip(again(images()), result.model(images()), strict=True):
            torch.testing.assert_close(found["boxes"], expected["boxes"])

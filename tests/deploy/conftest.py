"""Small detectors of both stacks whose every output is decided: scores far apart, statistics not the identity."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection

from norton_det.compression.precise_bn import reestimate_batch_norm

SIZE = {"min_size": 96, "max_size": 160}
FEW = {"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 30, "box_detections_per_img": 60}


SCORES = ("cls_score", "cls_logits", "objectness_logits")
DELTAS = ("bbox_pred", "anchor_deltas")


@torch.no_grad()
def spread(model: nn.Module, image: object) -> nn.Module:
    """Statistics that keep activations of order 1, and last layers that give many different scores and mild deltas.

    With plainly random weights scores saturate and deltas explode: the least rounding then changes the order.
    """
    generator = torch.Generator().manual_seed(0)
    reestimate_batch_norm(model.backbone, [torch.randn(2, 3, 96, 128, generator=generator)])
    model.eval()

    def settle(size: float) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            fan_in = layer.weight[0].numel()
            noise = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.copy_(noise * size / (inputs[0].square().mean().sqrt() * fan_in**0.5 + 1e-6))
            handles[layer].remove()

        return hook

    handles = {}
    for name, layer in model.named_modules():
        if name.endswith(SCORES + DELTAS):
            handles[layer] = layer.register_forward_pre_hook(settle(1.5 if name.endswith(SCORES) else 0.3))
    model([image])
    return model


def build_torchvision(kind: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    build = getattr(detection, f"{kind}rcnn_resnet50_fpn")
    options = {"weights": None, "weights_backbone": None, "box_score_thresh": 0.08, **SIZE, **FEW, **options}
    return spread(build(**options), torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(7)))


def build_detectron2(kind: str) -> nn.Module:
    pytest.importorskip("detectron2")
    from norton_det.d2.build import build_detector, load_config

    torch.manual_seed(0)
    few = ["MODEL.RPN.PRE_NMS_TOPK_TEST", 60, "MODEL.RPN.POST_NMS_TOPK_TEST", 30, "TEST.DETECTIONS_PER_IMAGE", 60]
    opts = ["MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.08, *few]
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(7)) * 255
    return spread(build_detector(load_config(f"dense_{kind}_rcnn.yaml", opts)), {"image": image})


BUILD: dict[str, Callable[[str], nn.Module]] = {"torchvision": build_torchvision, "detectron2": build_detectron2}
CASES = [(stack, kind) for stack in BUILD for kind in ("faster", "mask", "keypoint")]


@pytest.fixture(scope="session", params=CASES, ids="-".join)
def detector(request):
    """Each kind of both stacks."""
    stack, kind = request.param
    return BUILD[stack](kind)


@pytest.fixture(scope="session")
def faster():
    return build_torchvision("faster")


def waves() -> np.ndarray:
    """A picture (90, 130, 3), uint8: smooth, so that resizing is not all that is seen."""
    y, x = np.mgrid[:90, :130]
    colors = [127 + 120 * np.sin(x / (7 + 3 * c) + y / (11 - 2 * c)) for c in range(3)]
    return np.stack(colors, 2).astype(np.uint8)


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    return waves()

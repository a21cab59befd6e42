"""Detectors that answer in milliseconds, exported once."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """A fresh torchvision Faster R-CNN, norton-78, for OpenVINO; its scores are about 1/3."""
    pytest.importorskip("openvino")
    from norton_det.deploy import export
    from norton_det.tv import fasterrcnn_norton_resnet50_fpn

    torch.manual_seed(0)
    options = {"weights_backbone": None, "num_classes": 3, "box_score_thresh": 0.0, "box_detections_per_img": 8}
    detector = fasterrcnn_norton_resnet50_fpn(weights=None, rpn_post_nms_top_n_test=30, **options)
    path = tmp_path_factory.mktemp("exported") / "norton-78.xml"
    export(detector.eval(), path, min_size=64, max_size=128, classes=("background", "cat", "dog"))
    return path

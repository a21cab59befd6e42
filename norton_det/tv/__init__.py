"""torchvision adapter: R-CNN detectors with a compressed ResNet-50-FPN, built as torchvision builds its own."""

from ..checkpoint.save import save_detector
from .detectors import fasterrcnn_norton_resnet50_fpn, keypointrcnn_norton_resnet50_fpn, maskrcnn_norton_resnet50_fpn
from .weights import DetectorInfo, is_detector_file, read_detector_info

__all__ = [
    "fasterrcnn_norton_resnet50_fpn",
    "maskrcnn_norton_resnet50_fpn",
    "keypointrcnn_norton_resnet50_fpn",
    "DetectorInfo",
    "is_detector_file",
    "read_detector_info",
    "save_detector",
]

"""A detector as its own stack runs it (eager), behind the call of ``Predictor``: the baseline of what is deployed."""

from typing import Any

import numpy as np
import torch
from torch import nn

from .info import describe
from .predictor import Detections, check_color, check_image


class NativePredictor:
    """Pictures (H, W, 3), uint8, -> ``Detections`` by the detector's own forward.

    Args:
        detector: Faster, Mask or Keypoint R-CNN of either stack, in eval mode.
        color: order of the pictures given: RGB or BGR.
        options: ``min_size``, ``max_size`` and ``classes``, see ``DeployInfo``.
    """

    def __init__(self, detector: nn.Module, *, color: str = "RGB", **options: Any) -> None:
        check_color(color)
        self.detector, self.color, self.info = detector, color, describe(detector, **options)
        self.name = f"{self.info.adapter.title} eager"

    def __call__(self, image: np.ndarray, score: float = 0.0) -> Detections:
        """Detect in one picture (H, W, 3), uint8; detections of at least this score.

        Raises:
            InputError: another shape or type.
        """
        check_image(image)
        pixels = image if self.color == self.info.color else image[:, :, ::-1]
        with torch.inference_mode():
            fields = self.info.adapter.detect_picture(self.detector, pixels, self.info.min_size, self.info.max_size)
        return Detections(**fields).above(score)

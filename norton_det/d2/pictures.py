"""Pictures of detections side by side, drawn by Detectron2's visualizer."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

from ..data.images import beside

TITLE_HEIGHT = 28  # pixels


def draw_detections(
    image: np.ndarray, instances: Instances, metadata: Any, threshold: float = 0.5, scale: float = 1.0
) -> np.ndarray:
    """Boxes, labels, masks and keypoints of the detections with a score of at least ``threshold``.

    Args:
        image: (H, W, 3), RGB, uint8.
        instances: of one image, at its size.
        metadata: of the data set, for names and colours.
        scale: enlargement of the picture.

    Returns:
        (H*scale, W*scale, 3), RGB, uint8.
    """
    kept = instances.to("cpu")
    kept = kept[kept.scores >= threshold]
    canvas = Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.IMAGE)
    return canvas.draw_instance_predictions(kept).get_image()


def side_by_side(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pictures of one height in a row, each below its title: {title: (H, W, 3)} -> (H + 28, sum of W + gaps, 3)."""
    columns: list[np.ndarray] = []
    for title, picture in pictures.items():
        head = np.full((TITLE_HEIGHT, picture.shape[1], 3), 255, np.uint8)
        cv2.putText(head, title, (4, TITLE_HEIGHT - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.concatenate([head, picture]))
    return beside(columns, shade=255)

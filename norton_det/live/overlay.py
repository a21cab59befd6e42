"""Detections drawn onto a frame by ``supervision``: boxes, labels, masks, skeletons, and lines of text above them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.coco import KEYPOINT_NAMES, SKELETON
from ..deploy.engines import require_module
from ..deploy.predictor import Detections, class_name

LINE, MARGIN, TEXT = 20, 4, 0.5  # pixels of a line of text above the frame, pixels round it, and its scale


class Overlay:
    """Draws what one detector found on frames (H, W, 3), BGR, uint8.

    Args:
        classes: names by label; others are shown by their number.
        keypoint_threshold: scores below it are not drawn.

    Raises:
        InputError: supervision is not installed.
    """

    def __init__(self, classes: Sequence[str] = (), keypoint_threshold: float = 0.05) -> None:
        self.sv: Any = require_module("supervision")
        self.classes, self.keypoint_threshold = classes, keypoint_threshold

    def draw(
        self, image: np.ndarray, detections: Detections, lines: Sequence[str] = (), scores: bool = True
    ) -> np.ndarray:
        """A copy of the frame with the detections, with or without their scores, and the lines above it."""
        sv, scene = self.sv, image.copy()
        scale = max(0.4, min(image.shape[:2]) / 900)
        thickness = max(1, round(2 * scale))
        if len(detections):
            annotations = sv.Detections(
                xyxy=detections.boxes,
                mask=detections.masks,
                confidence=detections.scores,
                class_id=detections.labels.astype(int),
            )
            if detections.masks is not None:
                scene = sv.MaskAnnotator(opacity=0.45).annotate(scene, annotations)
            scene = sv.BoxAnnotator(thickness=thickness).annotate(scene, annotations)
            scene = self._draw_labels(scene, annotations, 0.6 * scale, scores)
            if detections.keypoints is not None:
                scene = self._draw_keypoints(scene, detections, thickness)
        return self._with_text(scene, lines)

    def _draw_labels(self, scene: np.ndarray, annotations: Any, scale: float, scores: bool) -> np.ndarray:
        """Labels above the boxes, or inside those that begin at the top edge."""
        import cv2

        sv, padding = self.sv, max(2, round(7 * scale))
        names = [class_name(self.classes, int(label)) for label in annotations.class_id]
        if scores:
            names = [f"{name} {score:.0%}" for name, score in zip(names, annotations.confidence, strict=True)]
        height = cv2.getTextSize("Ag", cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][1] + 2 * padding
        at_top = annotations.xyxy[:, 1] < height
        for group, down in ((~at_top, 0), (at_top, height)):
            annotator = sv.LabelAnnotator(
                text_scale=scale, text_thickness=1, text_padding=padding, text_offset=(0, down)
            )
            texts = [name for name, keep in zip(names, group, strict=True) if keep]
            scene = annotator.annotate(scene, annotations[group], texts)
        return scene

    def _draw_keypoints(self, scene: np.ndarray, detections: Detections, thickness: int) -> np.ndarray:
        sv, points = self.sv, detections.keypoints
        assert points is not None
        visible = points[:, :, 2] >= self.keypoint_threshold
        shown = np.where(visible[..., None], points[:, :, :2], 0).astype(np.float32)  # zeros are left out
        keypoints = sv.KeyPoints(xy=shown, keypoint_confidence=points[:, :, 2].astype(np.float32), visible=visible)
        if points.shape[1] == len(KEYPOINT_NAMES):
            edges = sv.EdgeAnnotator(color=sv.Color.GREEN, thickness=thickness, edges=SKELETON)
            scene = edges.annotate(scene, keypoints)
        return sv.VertexAnnotator(color=sv.Color.RED, radius=thickness + 1).annotate(scene, keypoints)

    def _with_text(self, scene: np.ndarray, lines: Sequence[str]) -> np.ndarray:
        if not lines:
            return scene
        import cv2

        sv, room = self.sv, scene.shape[1] - 2 * MARGIN
        head = np.full((LINE * len(lines) + MARGIN, scene.shape[1], 3), 24, np.uint8)
        for number, line in enumerate(lines):
            width = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, TEXT, 1)[0][0]
            scale = min(TEXT, TEXT * room / max(width, 1))
            middle = sv.Point(MARGIN + width * scale / TEXT / 2, MARGIN / 2 + LINE * (number + 0.5))
            head = sv.draw_text(head, line, middle, sv.Color.WHITE, scale, 1, 0)
        return np.concatenate([head, scene])

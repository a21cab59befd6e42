"""One call for a detector in PyTorch, ONNX Runtime or OpenVINO: a picture in, boxes in its pixels out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..utils.errors import InputError
from .engines import OnnxEngine, OpenVINOEngine, TorchEngine, load_engine
from .info import DeployInfo, describe


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, by falling score.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the picture, float32.
        scores: (N,) in 0..1.
        labels: (N,) as the detector numbers its classes: from 1 in torchvision, from 0 in Detectron2.
        masks: (N, H, W) bool, of a Mask R-CNN.
        keypoints: (N, K, 3) as x, y in pixels of the picture and a score, of a Keypoint R-CNN.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def none(cls) -> "Detections":
        """Of a picture in which nothing was found."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    def above(self, score: float) -> "Detections":
        """Those of at least this score."""
        keep = self.scores >= score
        return Detections(**{name: value[keep] for name, value in vars(self).items() if value is not None})

    def to_instances(self, height: int, width: int) -> Any:
        """Detectron2's ``Instances`` of a picture of that size, with the fields its models give."""
        from detectron2.structures import Boxes, Instances

        instances = Instances((height, width))
        instances.pred_boxes = Boxes(torch.from_numpy(self.boxes))
        instances.scores, instances.pred_classes = torch.from_numpy(self.scores), torch.from_numpy(self.labels)
        if self.masks is not None:
            instances.pred_masks = torch.from_numpy(self.masks)
        if self.keypoints is not None:
            instances.pred_keypoints = torch.from_numpy(self.keypoints)
        return instances


def class_name(classes: Sequence[str], label: int) -> str:
    """Name of a label; its number where no name is known."""
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


class Predictor:
    """Pictures (H, W, 3), uint8, -> ``Detections``.

    Args:
        source: an ``.onnx`` or ``.xml`` (OpenVINO) file of ``export``, or a detector of either stack, which then runs
            in PyTorch, in its deploy form, where it is.
        color: order of the pictures given: RGB, or BGR as OpenCV reads them.
        precision: f32 or bf16 (f16 for a detector on a GPU); by default what the file says, f32 for a detector.
        threads: of the CPU; by default all cores (of PyTorch: what ``torch.set_num_threads`` says).
        options: of a detector: ``min_size``, ``max_size`` and ``classes`` of its ``DeployInfo``.

    Raises:
        InputError: no such file, not one of ``export``, or an engine that is not installed; its extra is named.
    """

    def __init__(
        self,
        source: str | Path | nn.Module,
        *,
        color: str = "RGB",
        precision: str | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        check_color(color)
        self.color = color
        self.engine: TorchEngine | OnnxEngine | OpenVINOEngine
        if isinstance(source, nn.Module):
            if threads is not None:
                raise InputError("threads: expected none beside a detector, got some; call torch.set_num_threads")
            self.engine = TorchEngine(source, describe(source, precision=precision, **options))
        else:
            if options:
                raise InputError(f"{next(iter(options))}: expected with a detector alone; a file says so itself")
            if precision not in (None, "f32", "bf16"):
                raise InputError(f"precision: expected f32 or bf16, got {precision!r}; int8 is made by export")
            self.engine = load_engine(source, precision, threads)
        self.info = self.engine.info
        self.name: str = self.engine.name

    def __call__(self, image: np.ndarray, score: float = 0.0) -> Detections:
        """Detect in one picture.

        Args:
            image: (H, W, 3), uint8.
            score: least score; masks below it are not even made.

        Raises:
            InputError: another shape or type, or outputs that are not finite.
        """
        return self.finish(self.run(self.prepare(image)), image.shape[0], image.shape[1], score)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The graph's input (1, 3, h, w), float32 in 0..255, for a picture."""
        return prepare(self.info, image, self.color)[None].numpy()

    def run(self, pixels: np.ndarray) -> list[Tensor]:
        """The graph alone: input of ``prepare`` -> outputs of ``DetectorGraph``, and its input's (h, w) last."""
        outputs: Sequence[Any] = self.engine.run(pixels)
        tensors = [value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value)) for value in outputs]
        return [*tensors, torch.tensor(pixels.shape[2:])]

    def finish(self, outputs: Sequence[Tensor], height: int, width: int, score: float = 0.0) -> Detections:
        """Outputs of ``run`` as detections of at least this score in a picture of that size."""
        boxes, scores, labels, *extra, size = outputs
        if not (boxes.isfinite().all() and scores.isfinite().all()):
            raise InputError("detections: expected finite numbers, got NaN or infinity; use intact weights")
        scale = torch.tensor([width / float(size[1]), height / float(size[0])]).repeat(2)
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        scaled = torch.minimum((boxes.float() * scale).clamp(min=0), limits)
        keep = (scaled[:, 2:] > scaled[:, :2]).all(1) & (scores >= score)  # sides may vanish by rounding
        boxes, scaled, scores, labels, *extra = (values[keep] for values in (boxes, scaled, scores, labels, *extra))
        masks = keypoints = None
        if "masks" in self.info.outputs:
            masks = self.info.adapter.paste_masks(extra[0].float(), scaled, height, width).numpy()
        if "heatmaps" in self.info.outputs:
            points = self.info.adapter.keypoints_from(extra[0].float(), boxes.float())
            keypoints = (points * torch.cat([scale[:2], torch.ones(1)])).numpy()
        return Detections(scaled.numpy(), scores.float().numpy(), labels.long().numpy(), masks, keypoints)


def prepare(info: DeployInfo, image: np.ndarray, color: str) -> Tensor:
    """A picture as a detector's input (3, h, w), float32 in 0..255, resized and in the detector's colour order.

    Args:
        info: of the detector.
        image: (H, W, 3), uint8.
        color: order of its colours, RGB or BGR.

    Raises:
        InputError: another shape or type.
    """
    check_image(image)
    pixels = image if color == info.color else image[:, :, ::-1]
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
    return info.adapter.resize(tensor, info.min_size, info.max_size)


def check_color(color: object) -> None:
    """Refuse another order of colours than RGB and BGR.

    Raises:
        InputError: another one.
    """
    if color not in ("RGB", "BGR"):
        raise InputError(f"color: expected RGB or BGR, got {color!r}; say how the pictures are given")


def check_image(image: object) -> None:
    """Refuse what is no picture (H, W, 3), uint8.

    Raises:
        InputError: another shape or type.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image: expected an array (H, W, 3) of uint8, got {got}; convert it")
    if not image.size:
        raise InputError(f"image: expected pixels, got shape {image.shape}; give a picture")

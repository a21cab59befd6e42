"""One call for a detector in PyTorch, ONNX Runtime or OpenVINO: a picture in, boxes in its pixels out."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, first_line
from ..files import require_file
from ..fuse import fuse
from .graph import DetectorGraph, to_graph
from .info import DeployInfo, describe

Run = Callable[[np.ndarray], Sequence[Any]]
ENGINES = {".onnx": ("onnxruntime", "onnx"), ".xml": ("openvino", "openvino")}  # ending -> module, extra
METADATA_KEY = "norton_det"


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

    def above(self, score: float) -> "Detections":
        """Those of at least this score."""
        keep = self.scores >= score
        return Detections(*(None if part is None else part[keep] for part in vars(self).values()))

    def to_instances(self, height: int, width: int) -> Any:
        """Detectron2's ``Instances`` of a picture of that size, with the fields its models give."""
        from detectron2.structures import Boxes, Instances

        found = Instances((height, width))
        found.pred_boxes = Boxes(torch.from_numpy(self.boxes))
        found.scores, found.pred_classes = torch.from_numpy(self.scores), torch.from_numpy(self.labels)
        if self.masks is not None:
            found.pred_masks = torch.from_numpy(self.masks)
        if self.keypoints is not None:
            found.pred_keypoints = torch.from_numpy(self.keypoints)
        return found


class Predictor:
    """Pictures (H, W, 3), uint8, -> ``Detections``.

    Args:
        source: an ``.onnx`` or ``.xml`` (OpenVINO) file of ``export``, or a detector of either stack, which then runs
            in PyTorch, in its deploy form, where it is.
        color: order of the pictures given: RGB, or BGR as OpenCV reads them.
        precision: f32 or bf16; by default what the file says, f32 for a detector.
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
        if color not in ("RGB", "BGR"):
            raise InputError(f"color: expected RGB or BGR, got {color!r}; say how the pictures are given")
        if precision not in (None, "f32", "bf16"):
            raise InputError(f"precision: expected f32 or bf16, got {precision!r}; int8 is made by export")
        self.color = color
        if isinstance(source, nn.Module):
            if threads is not None:
                raise InputError("threads: expected none beside a detector, got some; call torch.set_num_threads")
            self.info = describe(source, precision=precision or "f32", **options)
            self.engine, self._run = "PyTorch", _torch_run(source, self.info.precision)
            return
        if options:
            raise InputError(f"{next(iter(options))}: expected with a detector alone; a file says so itself")
        path = require_file(source, "an exported detector (.onnx or .xml)")
        if path.suffix not in ENGINES:
            raise InputError(
                f"{path}: expected a file ending in .onnx or .xml, got {path.suffix!r}; see tools/export.py"
            )
        load = _onnx_run if path.suffix == ".onnx" else _openvino_run
        self.engine = "ONNX Runtime" if path.suffix == ".onnx" else "OpenVINO"
        self.info, self._run = load(path, precision, threads)

    def __call__(self, image: np.ndarray) -> Detections:
        """Detect in one picture.

        Args:
            image: (H, W, 3), uint8.

        Raises:
            InputError: another shape or type, or outputs that are not finite.
        """
        return self.finish(self.run(self.prepare(image)), image.shape[0], image.shape[1])

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The graph's input (1, 3, h, w), float32 in 0..255, for a picture."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"image: expected an array (H, W, 3) of uint8, got {got}; convert it")
        if not image.size:
            raise InputError(f"image: expected pixels, got shape {image.shape}; give a picture")
        pixels = image if self.color == self.info.color else image[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
        resized = self.info.adapter.resize(tensor, self.info.min_size, self.info.max_size)
        return resized[None].numpy()

    def run(self, pixels: np.ndarray) -> list[Tensor]:
        """The graph alone: input of ``prepare`` -> outputs of ``DetectorGraph``, and its input's (h, w) last."""
        found = [
            torch.as_tensor(np.asarray(part)) if not isinstance(part, Tensor) else part for part in self._run(pixels)
        ]
        return [*found, torch.tensor(pixels.shape[2:])]

    def finish(self, outputs: Sequence[Tensor], height: int, width: int) -> Detections:
        """Outputs of ``run`` as detections in a picture of that size."""
        boxes, scores, labels, *extra, size = outputs
        if not (boxes.isfinite().all() and scores.isfinite().all()):
            raise InputError("detections: expected finite numbers, got NaN or infinity; use intact weights")
        scale = torch.tensor([width / float(size[1]), height / float(size[0])]).repeat(2)
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        scaled = torch.minimum((boxes.float() * scale).clamp(min=0), limits)
        keep = (scaled[:, 2:] > scaled[:, :2]).all(1)  # sides may vanish by rounding
        boxes, scaled, scores, labels, *extra = (part[keep] for part in (boxes, scaled, scores, labels, *extra))
        masks = keypoints = None
        if "masks" in self.info.outputs:
            masks = self.info.adapter.paste(extra[0].float(), scaled, height, width).numpy()
        if "heatmaps" in self.info.outputs:
            found = self.info.adapter.keypoints(extra[0].float(), boxes.float())
            keypoints = (found * torch.cat([scale[:2], torch.ones(1)])).numpy()
        return Detections(scaled.numpy(), scores.float().numpy(), labels.long().numpy(), masks, keypoints)


def _torch_run(detector: nn.Module, precision: str) -> Run:
    graph = fuse((detector if isinstance(detector, DetectorGraph) else to_graph(detector)).eval())
    device = next(graph.parameters()).device
    graph = graph.to(memory_format=torch.channels_last)

    def run(pixels: np.ndarray) -> list[Tensor]:
        image = torch.from_numpy(pixels).to(device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return [part.cpu() for part in graph(image)]

    return run


def _onnx_run(path: Path, precision: str | None, threads: int | None) -> tuple[DeployInfo, Run]:
    runtime = _engine(path)
    if precision == "bf16":
        raise InputError(f"{path}: expected precision f32 with ONNX Runtime, got bf16; export to .xml for OpenVINO")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(
            f"{path}: expected an ONNX file, got a damaged one ({first_line(error)}); export again"
        ) from None
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise InputError(f"{path}: expected a file of tools/export.py, got another ONNX file; export the detector")
    return DeployInfo.from_json(text, str(path)), lambda pixels: session.run(None, {"image": pixels})


def _openvino_run(path: Path, precision: str | None, threads: int | None) -> tuple[DeployInfo, Run]:
    openvino = _engine(path)
    core = openvino.Core()
    try:
        model = core.read_model(path)
    except Exception as error:
        raise InputError(f"{path}: expected an OpenVINO file with its .bin, got none ({first_line(error)})") from None
    if not model.has_rt_info([METADATA_KEY]):
        raise InputError(f"{path}: expected a file of tools/export.py, got another model; export the detector")
    info = DeployInfo.from_json(model.get_rt_info([METADATA_KEY]).astype(str), str(path))
    hint = precision or ("bf16" if info.precision == "bf16" else "f32")
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    outputs = [compiled.output(name) for name in info.outputs]

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        found = request.infer([pixels])
        return [found[output].copy() for output in outputs]

    return info, run


def _engine(path: Path) -> Any:
    module, extra = ENGINES[path.suffix]
    try:
        return importlib.import_module(module)
    except ImportError:
        mend = f"run pip install norton_det[{extra}]"
        raise InputError(f"{path}: expected {module} to be installed, found none; {mend}") from None

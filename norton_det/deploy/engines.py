"""The engines that run a ``DetectorGraph``: PyTorch, ONNX Runtime, OpenVINO. Input (1, 3, H, W) float32 in 0..255.

All have ``info``, ``run`` (the graph's outputs) and ``parts`` (seconds of its parts, for one input).
"""

import importlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint.digest import file_digest
from ..utils.errors import InputError, first_line
from ..utils.extras import mend
from ..utils.files import require_file
from .clock import with_rest
from .graph import DetectorGraph, fused_graph
from .info import DeployInfo

INPUT = "image"
METADATA_KEY = "norton_det"
WEIGHTS_KEY = "norton_det_weights"  # SHA-256 of the .bin file beside an .xml file
MODULES = {".onnx": "onnxruntime", ".xml": "openvino"}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class TorchEngine:
    """A detector in its deploy form, in channels_last, where it is; bf16 and f16 by autocast."""

    name = "PyTorch"

    def __init__(self, detector: nn.Module, info: DeployInfo) -> None:
        self.info = info
        self.graph: DetectorGraph = fused_graph(detector).to(memory_format=torch.channels_last)
        self.device = next(self.graph.parameters()).device
        if info.precision not in DTYPES or (info.precision == "f16" and self.device.type == "cpu"):
            expected = "f32 or bf16" if self.device.type == "cpu" else "f32, bf16 or f16"
            raise InputError(f"precision: expected {expected} in PyTorch, got {info.precision}; int8 is made by export")

    def run(self, pixels: np.ndarray) -> list[Tensor]:
        image = torch.from_numpy(pixels).to(self.device).contiguous(memory_format=torch.channels_last)
        dtype = DTYPES[self.info.precision]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, None if dtype == torch.float32 else dtype, dtype != torch.float32),
        ):
            return [output.cpu() for output in self.graph(image)]

    def parts(self, pixels: np.ndarray) -> dict[str, float]:
        graph = self.graph
        methods: dict[str, tuple[Any, str]] = {
            "backbone": (graph.backbone, "forward"),
            "rpn_head": (graph.rpn_head, "forward"),
            "proposals": (graph, "propose"),
            "pooling": (graph, "pool"),
        }
        methods |= {f"{name}_head": (head, "forward") for name, head in graph.heads.items()}
        return with_rest(lambda: self.run(pixels), methods, self.device)


class OnnxEngine:
    """An ``.onnx`` file of ``export`` in ONNX Runtime, on the CPU."""

    name = "ONNX Runtime"

    def __init__(self, path: Path, precision: str | None, threads: int | None) -> None:
        runtime = _import(path)
        if precision not in (None, "f32"):
            raise InputError(f"precision: expected f32 with ONNX Runtime, got {precision}; export to .xml for OpenVINO")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads sleep
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever a damaged file leads to
            reason = first_line(error)
            raise InputError(f"{path}: expected an intact ONNX file ({reason}); export it again") from None
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise InputError(
                f"{path}: expected a file of norton-det export, got another ONNX file; export the detector"
            )
        self.info = DeployInfo.from_json(text, str(path))

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        return self.session.run(list(self.info.outputs), {INPUT: pixels})

    def parts(self, pixels: np.ndarray) -> dict[str, float]:
        """ONNX Runtime tells no times of nodes without a file of its own: only the whole."""
        return with_rest(lambda: self.run(pixels), {}, torch.device("cpu"))


class OpenVINOEngine:
    """An ``.xml`` file of ``export`` in OpenVINO, on the CPU."""

    name = "OpenVINO"

    def __init__(self, path: Path, precision: str | None, threads: int | None) -> None:
        openvino = _import(path)
        weights = require_file(path.with_suffix(".bin"), "the weights of an OpenVINO file")
        self.core = openvino.Core()
        self.core.set_property({"ENABLE_MMAP": False})  # a file that is replaced must not change under the engine
        try:
            self.model = self.core.read_model(path)
        except Exception as error:  # whatever a damaged file leads to
            reason = str(error).strip().splitlines()[-1][:120]  # the first ones name OpenVINO's source
            raise InputError(f"{path}: expected an intact OpenVINO file ({reason}); export it again") from None
        if not self.model.has_rt_info([METADATA_KEY]):
            raise InputError(f"{path}: expected a file of norton-det export, got another model; export the detector")
        if self.model.has_rt_info([WEIGHTS_KEY]):
            expected = self.model.get_rt_info([WEIGHTS_KEY]).astype(str)
            if file_digest(weights) != expected:
                raise InputError(f"{weights}: sha256: expected {expected[:12]}... as {path.name} says; export it again")
        info = DeployInfo.from_json(self.model.get_rt_info([METADATA_KEY]).astype(str), str(path))
        self.info = info if precision is None or info.precision == "int8" else replace(info, precision=precision)
        hint = precision or ("bf16" if info.precision == "bf16" else "f32")
        self.options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            self.options["INFERENCE_NUM_THREADS"] = threads
        self.request = self._compile({})
        self.outputs = [self.request.model_outputs[index] for index in range(len(self.info.outputs))]
        self.profiled: Any = None  # a request that counts, made when it is asked for

    def _compile(self, more: dict[str, Any]) -> Any:
        return self.core.compile_model(self.model, "CPU", self.options | more).create_infer_request()

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        results = self.request.infer([pixels])
        return [results[output].copy() for output in self.outputs]

    def parts(self, pixels: np.ndarray) -> dict[str, float]:
        """Times of nodes by the part that they came from; nodes of proposals, pooling and NMS are the rest."""
        if self.profiled is None:
            self.profiled = self._compile({"PERF_COUNT": True})
            self.profiled.infer([pixels])  # the first one prepares kernels
        self.profiled.infer([pixels])
        spent: dict[str, float] = defaultdict(float)
        for node in self.profiled.get_profiling_info():
            words = node.node_name.strip("/").split("/")
            part = words[0] if words[0] in ("backbone", "rpn_head") else "rest"
            if words[0] in ("box", "mask", "keypoint"):
                part = f"{words[0]}_head"
            if node.node_type in ("ROIAlign", "RoiAlign"):
                part = "pooling"
            spent[part] += node.real_time.total_seconds()
        return dict(spent)


def load_engine(path: str | Path, precision: str | None, threads: int | None) -> OnnxEngine | OpenVINOEngine:
    """The engine for a file of ``export``.

    Raises:
        InputError: no such file, not one of ``export``, or the engine is not installed; its extra is named.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads: expected 1 or more, got {threads!r}; leave it out for all cores")
    file = require_file(path, "an exported detector (.onnx or .xml)")
    if file.suffix not in MODULES:
        raise InputError(f"{file}: expected an ending .onnx or .xml, got {file.suffix!r}; see norton-det export")
    return (OnnxEngine if file.suffix == ".onnx" else OpenVINOEngine)(file, precision, threads)


def require_module(module: str) -> Any:
    """An engine's module.

    Raises:
        InputError: it is not installed; one line with what installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        how = mend(module)
        raise InputError(f"expected {module} to be installed, found none; {how}") from None


def _import(path: Path) -> Any:
    return require_module(MODULES[path.suffix])

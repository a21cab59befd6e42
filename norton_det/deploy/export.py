"""Write a whole detector as one ONNX or OpenVINO file: network, proposals, RoIAlign and NMS, any image size.

The graph is traced once; what depends on the size of the image is computed in the graph. int8 is post-training
quantisation by NNCF on unlabelled pictures. Files are written whole or not at all.
"""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..checkpoint.digest import file_digest
from ..utils.errors import InputError, first_line, why_not_written
from ..utils.files import atomic_path, require_writable
from ..utils.options import FILE_PRECISIONS
from .engines import INPUT, METADATA_KEY, WEIGHTS_KEY, require_module
from .graph import DetectorGraph, fused_graph
from .info import DeployInfo, describe
from .predictor import prepare

OPSET = 17
EXAMPLE = (192, 256)  # pixels: the image that is traced
NETWORK = ("backbone", "rpn_head", "box", "mask", "keypoint")  # first part of the names of nodes that int8 is for


def export(
    detector: nn.Module,
    path: str | Path,
    *,
    precision: str = "f32",
    min_size: int | None = None,
    max_size: int | None = None,
    classes: Sequence[str] | None = None,
    calibration: Sequence[np.ndarray] | None = None,
    progress: bool = False,
) -> DeployInfo:
    """Export a detector in its deploy form; it is untouched.

    Args:
        detector: Faster, Mask or Keypoint R-CNN with FPN, of either stack, dense or compressed.
        path: ending in .onnx (ONNX Runtime and others) or .xml (OpenVINO; the weights go to a .bin beside it).
        precision: f32; with OpenVINO also bf16 (the file is the same, the engine is asked for it) and int8.
        min_size, max_size: sides in pixels that pictures are resized to; by default what the detector says.
        classes: names by label.
        calibration: for int8: pictures (H, W, 3), uint8, RGB; 100 to 300 will do.
        progress: show a bar.

    Returns:
        What the file says of itself.

    Raises:
        InputError: the detector cannot be exported, an ending or precision is not one of these, or the engine is not
            installed; one line with its extra.
    """
    target = Path(path)
    if target.suffix not in (".onnx", ".xml"):
        raise InputError(f"{path}: expected a name ending in .onnx or .xml, got {target.suffix!r}; choose one of them")
    if precision not in FILE_PRECISIONS or (precision != "f32" and target.suffix == ".onnx"):
        expected = "f32" if target.suffix == ".onnx" else ", ".join(FILE_PRECISIONS)
        raise InputError(f"precision: expected {expected} for {target.suffix}, got {precision!r}; choose one of them")
    if (precision == "int8") != (calibration is not None and len(calibration) > 0):
        raise InputError("calibration: expected pictures with precision int8 and none else; give both or neither")
    for file in (target, *([target.with_suffix(".bin")] if target.suffix == ".xml" else [])):
        require_writable(file)
    info = describe(detector, precision=precision, min_size=min_size, max_size=max_size, classes=classes)
    for module in ("onnx", *(("openvino",) if target.suffix == ".xml" else ()), *(("nncf",) * (precision == "int8"))):
        require_module(module)
    graph = fused_graph(detector).cpu().float()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.onnx"
        _trace(graph, file)
        if target.suffix == ".onnx":
            _write_onnx(file, target, info)
        else:
            _write_openvino(file, target, info, calibration, progress)
    return info


def _trace(graph: DetectorGraph, file: Path) -> None:
    axes: dict[str, dict[int, str]] = {name: {0: "detections"} for name in graph.outputs}
    axes[INPUT] = {2: "height", 3: "width"}
    image = torch.randint(0, 256, (1, 3, *EXAMPLE), generator=torch.Generator().manual_seed(0)).float()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracer: shapes are tensors here
            torch.onnx.export(
                graph,
                (image,),
                str(file),
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(graph.outputs),
                dynamic_axes=axes,
            )
    except (RuntimeError, TypeError, AttributeError, torch.onnx.errors.OnnxExporterError) as error:
        raise InputError(f"detector: could not be traced ({first_line(error)}); leave the unusual layer out") from None


def _write_onnx(file: Path, target: Path, info: DeployInfo) -> None:
    import onnx

    model = onnx.load(str(file))
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, info.to_json()
    with atomic_path(target) as temporary:
        onnx.save(model, str(temporary))


def _write_openvino(
    file: Path, target: Path, info: DeployInfo, calibration: Sequence[np.ndarray] | None, progress: bool
) -> None:
    import openvino

    model = openvino.Core().read_model(file)
    if info.precision == "int8":
        assert calibration is not None
        model = _quantise(model, info, calibration, progress)
    model.set_rt_info(info.to_json(), [METADATA_KEY])
    with _beside(target) as folder:
        made = folder / target.name
        openvino.save_model(model, str(made), compress_to_fp16=False)
        model.set_rt_info(file_digest(made.with_suffix(".bin")), [WEIGHTS_KEY])
        openvino.save_model(model, str(made), compress_to_fp16=False)  # the same weights, and now their digest


def _quantise(model: Any, info: DeployInfo, pictures: Sequence[np.ndarray], progress: bool) -> Any:
    """int8 by NNCF in the network; boxes are decoded, chosen and pooled in f32."""
    import nncf

    bar = tqdm(pictures, "prepare", unit="image", disable=not progress)
    inputs = [prepare(info, picture, "RGB")[None].numpy() for picture in bar]
    names = [
        node.get_friendly_name() for node in model.get_ops() if node.get_type_name() not in ("Parameter", "Result")
    ]
    rest = [name for name in names if name.startswith("/") and name.split("/")[1] not in NETWORK]
    with _quiet(progress):
        return nncf.quantize(
            model,
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=rest, validate=False),
        )


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """NNCF's bars and log only where progress is shown."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if progress else nowhere):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder beside the target; its files are moved there when the block ends well, the .xml last."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        for file in sorted(folder.iterdir(), key=lambda path: path.suffix == ".xml"):
            file.replace(target.parent / file.name)
    except OSError as error:
        raise InputError(f"{target}: could not be written {why_not_written(error)}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)

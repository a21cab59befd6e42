"""norton_det: small, fast R-CNN detectors by NORTON, filter-wise CP decomposition and pruning in the decomposed space.

    import norton_det as nd
    spec = nd.CompressionSpec.preset("norton-64")
    result = nd.compress(resnet50, spec)
    nd.save_checkpoint("resnet50_norton-64.safetensors", result.model)

Reference: V. T. Pham, Y. Zniyed, T. P. Nguyen, "Enhanced Network Compression Through Tensor Decompositions and
Pruning", IEEE TNNLS 36(3), 2025. The core needs PyTorch only; ``norton_det.d2`` is the Detectron2 adapter,
``norton_det.tv`` the torchvision one.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import Calibration
    from .checkpoint import load_checkpoint, save_checkpoint
    from .complexity import count_complexity
    from .compress import CompressionResult, compress, compress_detector_state
    from .cp import Factors, cp_decompose
    from .detector import DetectorResult, compress_detector
    from .detector_report import DetectorReport
    from .errors import InputError
    from .fuse import fuse
    from .layers import CPConv2d, LowRankLinear
    from .precise_bn import reestimate_batch_norm
    from .preprocessing import Preprocessing
    from .report import CompressionReport
    from .resnet import NortonResNet
    from .saliency import criteria, register_criterion
    from .search import SearchResult, search
    from .spec import CompressionSpec
    from .tune import tune
    from .weights import load_weights

__version__ = "0.1.0"
__all__ = [
    "CPConv2d",
    "Calibration",
    "CompressionReport",
    "CompressionResult",
    "CompressionSpec",
    "DetectorReport",
    "DetectorResult",
    "Factors",
    "InputError",
    "LowRankLinear",
    "NortonResNet",
    "Preprocessing",
    "SearchResult",
    "compress",
    "compress_detector",
    "compress_detector_state",
    "count_complexity",
    "cp_decompose",
    "criteria",
    "fuse",
    "load_checkpoint",
    "load_weights",
    "reestimate_batch_norm",
    "register_criterion",
    "save_checkpoint",
    "search",
    "tune",
]
# name -> module of this package; imported when first asked for, so that a command answers --help without torch
_HOMES = {
    "CPConv2d": "layers",
    "Calibration": "calibration",
    "CompressionReport": "report",
    "CompressionResult": "compress",
    "CompressionSpec": "spec",
    "DetectorReport": "detector_report",
    "DetectorResult": "detector",
    "Factors": "cp",
    "InputError": "errors",
    "LowRankLinear": "layers",
    "NortonResNet": "resnet",
    "Preprocessing": "preprocessing",
    "SearchResult": "search",
    "compress": "compress",
    "compress_detector": "detector",
    "compress_detector_state": "compress",
    "count_complexity": "complexity",
    "cp_decompose": "cp",
    "criteria": "saliency",
    "fuse": "fuse",
    "load_checkpoint": "checkpoint",
    "load_weights": "weights",
    "reestimate_batch_norm": "precise_bn",
    "register_criterion": "saliency",
    "save_checkpoint": "checkpoint",
    "search": "search",
    "tune": "tune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Some functions have the name of their module (``compress``): when that is imported, Python makes it an attribute
    of the package, where the function has to be."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

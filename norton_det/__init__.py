"""norton_det: small, fast R-CNN detectors by NORTON, filter-wise CP decomposition and pruning in the decomposed space.

    import norton_det as nd
    spec = nd.CompressionSpec.preset("norton-64")
    result = nd.compress(resnet50, spec)
    nd.save_checkpoint("resnet50_norton-64.safetensors", result.model)

Reference: V. T. Pham, Y. Zniyed, T. P. Nguyen, "Enhanced Network Compression Through Tensor Decompositions and
Pruning", IEEE TNNLS 36(3), 2025. The core (``utils`` to ``compression``) needs PyTorch, NumPy and tqdm;
``norton_det.d2`` is the Detectron2 adapter, ``norton_det.tv`` the torchvision one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint.load import load_checkpoint as load_checkpoint
    from .checkpoint.load import load_weights as load_weights
    from .checkpoint.save import save_checkpoint as save_checkpoint
    from .compression.calibration import Calibration as Calibration
    from .compression.criteria import criteria as criteria
    from .compression.criteria import register_criterion as register_criterion
    from .compression.detector import DetectorResult as DetectorResult
    from .compression.detector import compress_detector as compress_detector
    from .compression.detector_report import DetectorReport as DetectorReport
    from .compression.precise_bn import reestimate_batch_norm as reestimate_batch_norm
    from .compression.report import CompressionReport as CompressionReport
    from .compression.resnet import CompressionResult as CompressionResult
    from .compression.resnet import compress as compress
    from .compression.resnet import compress_detector_state as compress_detector_state
    from .compression.search.result import SearchResult as SearchResult
    from .compression.search.search import search as search
    from .decomposition.cp import Factors as Factors
    from .decomposition.cp import cp_decompose as cp_decompose
    from .deploy.tune import tune as tune
    from .models.complexity import count_complexity as count_complexity
    from .models.fuse import fuse as fuse
    from .models.layers import CPConv2d as CPConv2d
    from .models.layers import LowRankLinear as LowRankLinear
    from .models.preprocessing import Preprocessing as Preprocessing
    from .models.resnet import NortonResNet as NortonResNet
    from .models.spec import CompressionSpec as CompressionSpec
    from .utils.errors import InputError as InputError

__version__ = "0.1.0"
# module -> its public names; imported when first asked for, so that a command answers --help without torch
_PUBLIC = {
    "checkpoint.load": ("load_checkpoint", "load_weights"),
    "checkpoint.save": ("save_checkpoint",),
    "compression.calibration": ("Calibration",),
    "compression.criteria": ("criteria", "register_criterion"),
    "compression.detector": ("DetectorResult", "compress_detector"),
    "compression.detector_report": ("DetectorReport",),
    "compression.precise_bn": ("reestimate_batch_norm",),
    "compression.report": ("CompressionReport",),
    "compression.resnet": ("CompressionResult", "compress", "compress_detector_state"),
    "compression.search.result": ("SearchResult",),
    "compression.search.search": ("search",),
    "decomposition.cp": ("Factors", "cp_decompose"),
    "deploy.tune": ("tune",),
    "models.complexity": ("count_complexity",),
    "models.fuse": ("fuse",),
    "models.layers": ("CPConv2d", "LowRankLinear"),
    "models.preprocessing": ("Preprocessing",),
    "models.resnet": ("NortonResNet",),
    "models.spec": ("CompressionSpec",),
    "utils.errors": ("InputError",),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

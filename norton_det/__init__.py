"""norton_det: small, fast R-CNN detectors by NORTON, filter-wise CP decomposition and pruning in the decomposed space.

    import norton_det as nd
    spec = nd.CompressionSpec.preset("norton-64")
    result = nd.compress(resnet50, spec)
    nd.save_checkpoint("resnet50_norton-64.safetensors", result.model)

Reference: V. T. Pham, Y. Zniyed, T. P. Nguyen, "Enhanced Network Compression Through Tensor Decompositions and
Pruning", IEEE TNNLS 36(3), 2025. The core needs PyTorch only; ``norton_det.d2`` is the Detectron2 adapter,
``norton_det.tv`` the torchvision one.
"""

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

"""Detectron2 adapter. Importing it registers the backbones ``build_norton_resnet_backbone`` and
``build_norton_resnet_fpn_backbone``."""

from ..utils.configs import find_config
from .backbone import NortonResNetBackbone, build_norton_resnet_backbone, build_norton_resnet_fpn_backbone
from .build import load_config, load_detector
from .checkpoint import NortonCheckpointer
from .config import add_norton_config, info_from_config, spec_from_config
from .evaluation import NortonCOCOEvaluator
from .initial_weights import compress_weights, resume_weights
from .trainer import NortonTrainer

__all__ = [
    "NortonCOCOEvaluator",
    "NortonCheckpointer",
    "NortonResNetBackbone",
    "NortonTrainer",
    "add_norton_config",
    "build_norton_resnet_backbone",
    "build_norton_resnet_fpn_backbone",
    "compress_weights",
    "find_config",
    "info_from_config",
    "load_config",
    "load_detector",
    "resume_weights",
    "spec_from_config",
]

"""The weights that training starts from: dense ones are compressed first, fitted to training pictures.

With FrozenBN a detector keeps the statistics that its ResNet comes with: compressed by the weights alone, as in the
paper, it would start from a network that knows little (docs/results.md, "Accuracy before any fine-tuning").
"""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from tqdm import tqdm

from ..calibration import Calibration
from ..checkpoint import CheckpointInfo, save_checkpoint, save_tensors
from ..compress import compress, compress_detector_state
from ..data.images import ImageSize, make_transform, read_image
from ..errors import InputError
from ..preprocessing import Preprocessing
from ..spec import CompressionSpec
from ..weights import LoadedWeights, load_detector_state, load_weights
from .checkpoint import NortonCheckpointer
from .config import ranks_from_config, spec_from_config
from .engine import NORTON_BACKBONES, compress_to_file, to_input, with_weights
from .files import read_checkpoint_info, read_layout

logger = logging.getLogger(__name__)
CROP = 224  # pixels; of pictures for the ResNet alone
WHOLE = 64  # pictures at most for a whole detector, which takes them at their size


def compress_weights(cfg: CfgNode) -> CfgNode:
    """A config whose ``MODEL.WEIGHTS`` are a norton checkpoint: dense ones are compressed to ``MODEL.NORTON`` first,
    and fitted to ``MODEL.NORTON.CALIBRATION_IMAGES`` pictures of ``DATASETS.TRAIN``, without their annotations.

    The checkpoint goes to ``OUTPUT_DIR``; that of a detector keeps its neck and heads, unless ``MODEL.NORTON`` has
    ranks for them. Norton checkpoints that are compressed already, or dense as ``MODEL.NORTON`` is, are left alone.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights or cfg.MODEL.BACKBONE.NAME not in NORTON_BACKBONES:
        return cfg
    spec, info, layout = spec_from_config(cfg), read_checkpoint_info(weights), read_layout(weights)
    asked = any(rank is not None for rank in ranks_from_config(cfg).values())
    around = asked and (layout == {} if info is not None else _is_detectron2(load_detector_state(weights)))
    if info is not None and (spec.is_dense or not info.spec.is_dense) and not around:
        return cfg
    path = Path(cfg.OUTPUT_DIR) / f"start_{spec.name or 'norton'}.safetensors"
    if comm.is_main_process() and around:
        target = spec if info is None or info.spec.is_dense else None
        pictures = training_pictures(cfg, to_input(cfg), WHOLE)
        report = compress_to_file(path, cfg, target, calibration=pictures, **ranks_from_config(cfg), progress=True)
        logger.info("Compressed:\n%s", report.table())
    elif comm.is_main_process():
        loaded = load_weights(weights)
        logger.info("Weights: %s from %s", loaded.source, weights)
        if loaded.spec.is_dense and not spec.is_dense:
            _compress_to(path, cfg, loaded, load_detector_state(weights), spec)
        else:
            save_checkpoint(path, loaded.build())
    comm.synchronize()
    return with_weights(cfg, path)


def resume_weights(cfg: CfgNode) -> CfgNode | None:
    """A config whose ``MODEL.WEIGHTS`` are the last checkpoint in ``OUTPUT_DIR``, so that the network of that one
    is built; ``None`` when there is no checkpoint.
    """
    checkpointer = NortonCheckpointer(None, cfg.OUTPUT_DIR)
    return with_weights(cfg, checkpointer.get_checkpoint_file()) if checkpointer.has_checkpoint() else None


def training_pictures(cfg: CfgNode, convert: Callable[[Any], Any], most: int | None = None) -> list[Any] | None:
    """A random sample of the pictures of ``DATASETS.TRAIN``, converted from Pillow images in RGB; what cannot be read
    is named. ``MODEL.NORTON.CALIBRATION_IMAGES`` says how many, but no more than ``most``; ``None`` for 0.

    Raises:
        InputError: a number below 0, or no picture that can be read.
    """
    count = cfg.MODEL.NORTON.CALIBRATION_IMAGES
    if count < 0:
        raise InputError(f"MODEL.NORTON.CALIBRATION_IMAGES: expected 0 or more, got {count}; use 0 for none")
    if not count:
        return None
    files = sorted({str(record["file_name"]) for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)})
    random.Random(max(cfg.SEED, 0)).shuffle(files)
    found: list[Any] = []
    for file in tqdm(files[: min(count, most or count)], "pictures", unit="picture"):
        try:
            found.append(convert(read_image(Path(file))))
        except InputError as error:
            logger.warning("Skipped: %s", error)
    if not found:
        raise InputError(
            f"DATASETS.TRAIN {cfg.DATASETS.TRAIN}: expected pictures, got none that can be read; check them"
        )
    return found


def _calibration(cfg: CfgNode, preprocessing: Preprocessing) -> Calibration | None:
    """Crops of training pictures at the scale they are trained at, as a ResNet takes them."""
    side = min(cfg.INPUT.MIN_SIZE_TRAIN)
    pictures = training_pictures(cfg, make_transform(preprocessing, ImageSize(min(CROP, side), side)))
    if pictures is None:
        return None
    device = cfg.MODEL.DEVICE
    return Calibration(torch.stack(pictures), seed=max(cfg.SEED, 0), device=device)


def _compress_to(
    path: Path, cfg: CfgNode, loaded: LoadedWeights, detector: dict[str, Any] | None, spec: CompressionSpec
) -> None:
    """Compress dense weights, alone or in a detector, into a norton checkpoint."""
    options: dict[str, Any] = {
        "preprocessing": loaded.preprocessing,
        "stride_in_1x1": loaded.stride_in_1x1,
        "progress": True,
        "calibration": _calibration(cfg, loaded.preprocessing),
    }
    if detector is None:
        result = compress(loaded.state, spec, **options)
        report = result.report
        save_checkpoint(path, result.model)
    else:
        state, report = compress_detector_state(detector, spec, **options)
        save_tensors(path, state, CheckpointInfo(spec, loaded.preprocessing, 0, loaded.stride_in_1x1))
    logger.info("Compressed:\n%s", report.table())


def _is_detectron2(state: dict[str, Any] | None) -> bool:
    """Whether these are a detector's tensors by Detectron2's names."""
    return state is not None and any(".fpn_output" in name for name in state)

"""The weights that training starts from: dense ones are compressed first, fitted to training pictures.

With FrozenBN a detector keeps the statistics that its ResNet comes with: compressed by the weights alone, as in the
paper, it would start from a network that knows little (docs/results.md, "Accuracy before any fine-tuning").
"""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import Tensor
from torchvision.transforms.functional import center_crop

from ..checkpoint.load import load_weights
from ..checkpoint.opened import OpenedWeights, open_weights, reading_once
from ..checkpoint.save import save_checkpoint, save_tensors
from ..compression.calibration import Calibration
from ..compression.detector import CALIBRATION_PIXELS
from ..compression.resnet import compress, compress_detector_state
from ..data.images import Input, read_sample
from ..models.description import NetworkInfo
from ..models.spec import CompressionSpec
from ..utils.errors import InputError
from .agreement import check_agreement, follow_weights, preprocessing_from_config, stated_input
from .build import NORTON_BACKBONES, compress_to_file, to_input, with_weights
from .config import ranks_from_config, spec_from_config
from .files import newest_checkpoint, open_file
from .mapper import read_file

logger = logging.getLogger(__name__)
RESNET_CROP = 224  # pixels; of pictures for the ResNet alone
DETECTOR_PICTURES = 64  # at most, for a whole detector, which takes them at their size


def compress_weights(cfg: CfgNode) -> CfgNode:
    """A config whose ``MODEL.WEIGHTS`` are a norton checkpoint: dense ones are compressed to ``MODEL.NORTON`` first,
    and fitted to ``MODEL.NORTON.CALIBRATION_IMAGES`` pictures of ``DATASETS.TRAIN``, without their annotations.

    The checkpoint goes to ``OUTPUT_DIR``; that of a detector keeps its neck and heads, unless ``MODEL.NORTON`` has
    ranks for them. Norton checkpoints that are compressed already, or dense as ``MODEL.NORTON`` is, are left alone.
    """
    cfg = follow_weights(cfg)
    weights = cfg.MODEL.WEIGHTS
    if not weights or cfg.MODEL.BACKBONE.NAME not in NORTON_BACKBONES:
        return cfg
    spec = spec_from_config(cfg)
    around = any(rank is not None for rank in ranks_from_config(cfg).values())
    path = Path(cfg.OUTPUT_DIR) / f"start_{spec.name or 'norton'}.safetensors"
    error = ""
    with reading_once():
        opened = open_file(weights)
        if opened is not None and opened.described is not None:
            compressed = spec.is_dense or not opened.described.spec.is_dense
            if compressed and not (around and opened.layout == {}):
                return cfg
        if comm.is_main_process():
            try:
                _compress(path, cfg, spec, around)
            except InputError as caught:
                error = str(caught)
    if error := comm.all_gather(error)[0]:  # in all processes, so that none waits for the others
        raise InputError(error)
    return with_weights(cfg, path)


def resume_weights(cfg: CfgNode) -> CfgNode | None:
    """A config whose ``MODEL.WEIGHTS`` are the last checkpoint in ``OUTPUT_DIR``, so that the network of that one
    is built; ``None``, with a word, when there is no checkpoint.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if last := newest_checkpoint(folder):
        return with_weights(cfg, last)
    if checkpoints := sorted(folder.glob("model_*.pth")):
        raise InputError(
            f"{folder}: expected a whole checkpoint to resume, got {len(checkpoints)} that are not "
            f"(last: {checkpoints[-1].name}); remove them to start anew"
        )
    logger.warning("%s: nothing to resume, the run starts from MODEL.WEIGHTS", folder)
    return None


def _compress(path: Path, cfg: CfgNode, spec: CompressionSpec, around: bool) -> None:
    """Compress a ResNet, or with ``around`` a whole detector of Detectron2's, into a norton checkpoint."""
    opened = open_weights(cfg.MODEL.WEIGHTS)
    described = opened.described
    if around and (opened.layout == {} if described is not None else _is_detectron2(opened)):
        _compress_whole(path, cfg, spec if described is None or described.spec.is_dense else None)
    else:
        _compress_resnet(path, cfg, spec, opened)


def _compress_whole(path: Path, cfg: CfgNode, spec: CompressionSpec | None) -> None:
    """Compress a dense detector with the layers around its ResNet into a norton checkpoint."""
    pictures = training_pictures(cfg, to_input(cfg), DETECTOR_PICTURES)
    ranks = ranks_from_config(cfg)
    options: dict[str, Any] = ranks | {"calibration": pictures, "seed": max(cfg.SEED, 0), "progress": True}
    logger.info("Compressed:\n%s", compress_to_file(path, cfg, spec, **options).table())


def _compress_resnet(path: Path, cfg: CfgNode, spec: CompressionSpec, opened: OpenedWeights) -> None:
    """Compress a dense ResNet, alone or in a detector of Detectron2's, into a norton checkpoint."""
    preprocessing, stride = stated_input(opened, cfg)
    if opened.stack == "detectron2":  # one that does not say is of a training with this config
        preprocessing = preprocessing or preprocessing_from_config(cfg)
        stride = bool(cfg.MODEL.RESNETS.STRIDE_IN_1X1) if stride is None else stride
    loaded = load_weights(opened, preprocessing, stride)
    logger.info("Weights: %s from %s", loaded.source, cfg.MODEL.WEIGHTS)
    check_agreement(cfg, loaded.spec.arch, loaded.preprocessing, loaded.stride_in_1x1)
    detector = opened.detector if _is_detectron2(opened) else None
    if spec.is_dense or not loaded.spec.is_dense:
        if detector is None:
            save_checkpoint(path, loaded.build())
        else:
            info = NetworkInfo(loaded.spec, loaded.preprocessing, 0, loaded.stride_in_1x1)
            save_tensors(path, detector, info)
        return
    options: dict[str, Any] = {
        "preprocessing": loaded.preprocessing,
        "stride_in_1x1": loaded.stride_in_1x1,
        "progress": True,
        "calibration": _calibration(cfg),
    }
    if detector is not None:
        state, report = compress_detector_state(detector, spec, **options)
        save_tensors(path, state, NetworkInfo(spec, loaded.preprocessing, 0, loaded.stride_in_1x1))
    else:
        result = compress(loaded.state, spec, **options)
        report = result.report
        save_checkpoint(path, result.model)
    logger.info("Compressed:\n%s", report.table())


def training_pictures(cfg: CfgNode, convert: Callable[[np.ndarray], Input], most: int) -> list[Input] | None:
    """A random sample of the pictures of ``DATASETS.TRAIN``, converted from (H, W, 3), RGB, uint8; what cannot be read
    is named. ``MODEL.NORTON.CALIBRATION_IMAGES`` says how many, but no more than ``most``; ``None`` for 0.

    Raises:
        InputError: no picture that can be read.
    """
    count = min(cfg.MODEL.NORTON.CALIBRATION_IMAGES, most)
    if not count:
        return None
    files = sorted({str(record["file_name"]) for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)})
    random.Random(max(cfg.SEED, 0)).shuffle(files)
    origin = f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}"
    pictures, broken = read_sample(origin, files, convert, count, read=read_file, progress=True)
    for file, reason in broken.items():
        logger.warning("Skipped, %s: %s", reason, file)
    logger.info("Fitted to %d pictures of %s", len(pictures), origin)
    return pictures


def _calibration(cfg: CfgNode) -> Calibration | None:
    """Crops from the middle of training pictures at the scale they are trained at, as a ResNet takes them."""
    short = min(cfg.INPUT.MIN_SIZE_TRAIN)
    side = max(32, min(RESNET_CROP, short or RESNET_CROP))
    convert = to_input(cfg, (short, cfg.INPUT.MAX_SIZE_TRAIN))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))

    def crop(image: np.ndarray) -> Tensor:
        return (center_crop(convert(image)["image"], [side, side]) - mean) / std

    pictures = training_pictures(cfg, crop, CALIBRATION_PIXELS // side**2)
    if pictures is None:
        return None
    return Calibration(torch.stack(pictures), seed=max(cfg.SEED, 0), device=cfg.MODEL.DEVICE)


def _is_detectron2(opened: OpenedWeights) -> bool:
    """Whether weights are those of a whole detector of Detectron2's with FPN."""
    return opened.stack == "detectron2" and any(".fpn_output" in name for name in opened.around)

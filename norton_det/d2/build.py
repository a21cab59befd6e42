"""Configs and detectors of Detectron2 with norton checkpoints, compressed where they are dense; one-line errors."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..checkpoint.opened import reading_once
from ..checkpoint.save import save_detector
from ..compression.detector import choose_layout, compress_detector
from ..compression.detector_report import DetectorReport
from ..models.factorize import apply_layout, find_candidates
from ..models.labels import Labels, set_labels
from ..models.spec import CompressionSpec
from ..utils.configs import find_config
from ..utils.errors import InputError
from ..utils.files import require_file
from .agreement import check_input, follow_weights, stated_input
from .checkpoint import NortonCheckpointer
from .config import default_config, info_from_config, merge_options, one_line, ranks_from_config, spec_from_config
from .config_checks import check_model, number_of_classes
from .config_faults import naming_keys
from .config_files import has_reference, known_expressions
from .deploy import resize
from .description import CONFIG, labels_of_dataset, labels_of_file
from .files import open_file

logger = logging.getLogger(__name__)
NORTON_BACKBONES = ("build_norton_resnet_backbone", "build_norton_resnet_fpn_backbone")


def load_config(config_file: str, opts: list[str] | tuple[str, ...] = (), output_dir: str = "") -> CfgNode:
    """A frozen config from a file (a path or a bare name in ``configs/``) and ``KEY VALUE`` pairs.

    Without a GPU, ``MODEL.DEVICE`` becomes cpu; where ``MODEL.WEIGHTS`` are compressed, the backbone is theirs. Nothing
    in the file is executed.

    Raises:
        InputError: no such file, no YAML, an unknown key, or a value of another type; one line with the mend.
    """
    cfg = default_config()
    path = find_config(config_file)
    try:
        with known_expressions():
            cfg.merge_from_file(str(path), allow_unsafe=False)
    except (
        yaml.YAMLError,
        KeyError,
        ValueError,
        AssertionError,
        TypeError,
        AttributeError,
        OSError,
        RecursionError,
        MemoryError,
    ) as error:
        raise InputError(f"{path}: {one_line(error)}; correct that key") from None
    merge_options(cfg, opts)
    if cfg.MODEL.LOAD_PROPOSALS:
        raise InputError(
            f"{path}: MODEL.LOAD_PROPOSALS: expected False, got True: Detectron2's files of proposals are pickles, "
            "which may run code; leave it out"
        )
    rate, reference = "SOLVER.BASE_LR", "SOLVER.REFERENCE_IMS_PER_BATCH"
    if reference not in opts[::2] and (rate in opts[::2] or not has_reference(path)):
        cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0  # a rate that is given without one is as it is
    if output_dir:
        cfg.OUTPUT_DIR = output_dir
    for node, name in ((cfg, "OUTPUT_DIR"), (cfg.MODEL, "DEVICE"), (cfg.MODEL, "WEIGHTS")):
        if not isinstance(node[name], str):
            raise InputError(f"{name}: expected a text, got {node[name]!r}; leave it out for the default")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return follow_weights(cfg)


def check_weights(cfg: CfgNode) -> None:
    """Refuse ``MODEL.WEIGHTS`` that is missing or does not fit the config, before anything is built.

    Raises:
        InputError: one line naming the file and the mend.
    """
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights:
        require_file(weights, "the weights of MODEL.WEIGHTS")
    if cfg.MODEL.BACKBONE.NAME in NORTON_BACKBONES:
        info = info_from_config(cfg)
        requested = _requested_spec(cfg)
        if requested is not None and not info.spec.same_network(requested):
            logger.warning(
                "MODEL.NORTON asks for %s, which is not used: the weights have a spec of their own", requested
            )
        logger.info("Backbone: %s", info.spec)
    elif (opened := open_file(weights)) is not None:
        preprocessing, stride = stated_input(opened, cfg)
        if opened.described is None and stride is not None and stride != cfg.MODEL.RESNETS.STRIDE_IN_1X1:
            logger.warning("%s: most of its family want MODEL.RESNETS.STRIDE_IN_1X1 %s", weights, stride)
            stride = None
        check_input(cfg, preprocessing, stride)


def _requested_spec(cfg: CfgNode) -> CompressionSpec | None:
    """The spec of MODEL.NORTON; ``None`` where it makes none, which does not matter beside norton weights."""
    try:
        return spec_from_config(cfg)
    except InputError:
        return None


def compress_to_file(
    path: str | Path, cfg: CfgNode, spec: CompressionSpec | str | None, *, whole: bool = False, **options: Any
) -> DetectorReport:
    """Compress the detector of ``MODEL.WEIGHTS`` with the layers around its ResNet into a norton checkpoint.

    Args:
        path: of the checkpoint, a .safetensors file.
        cfg: of the detector as it is; what ``MODEL.NORTON`` says does not matter.
        spec: ranks and ratios of the ResNet, or a preset's name; ``None`` leaves it.
        whole: refuse weights that lack a part of the detector, or have heads of another number of classes.
        options: of ``compress_detector``.
    """
    result = compress_detector(load_as_it_is(cfg, whole), spec, **options)
    save_detector(path, result.model)
    return result.report


def load_as_it_is(cfg: CfgNode, whole: bool = True) -> torch.nn.Module:
    """The detector of ``MODEL.WEIGHTS``, whatever ``MODEL.NORTON`` says; ``whole``: see ``compress_to_file``."""
    dense = cfg.clone()
    dense.defrost()
    dense.MODEL.NORTON.update(dict.fromkeys(dense.MODEL.NORTON) | {"PRESET": "dense", "CALIBRATION_IMAGES": 0})
    dense.freeze()
    return _load(dense, whole)


def to_input(cfg: CfgNode, sizes: tuple[int, int] | None = None) -> Callable[[np.ndarray], dict[str, Any]]:
    """A function from a picture (H, W, 3), RGB, uint8, to what the detector takes: {"image": (3, h, w) in 0..255}.

    The channels are in the order of INPUT.FORMAT, the short and long sides as ``sizes`` say, by default
    INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST.
    """
    return image_maker(cfg.INPUT.FORMAT, *(sizes or (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)))


def image_maker(color: str, min_size: int, max_size: int) -> Callable[[np.ndarray], dict[str, Any]]:
    """``to_input`` for a detector of this order of colours, at these sizes."""
    step = -1 if color == "BGR" else 1

    def convert(image: np.ndarray) -> dict[str, Any]:
        pixels = np.asarray(image)[:, :, ::step].transpose(2, 0, 1)  # (3, H, W)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels)).float()
        resized = resize(tensor, min_size, max_size)
        return {"image": resized, "height": pixels.shape[1], "width": pixels.shape[2]}

    return convert


def build_detector(cfg: CfgNode) -> torch.nn.Module:
    """The detector of a config, fresh, with the factored layers that ``MODEL.WEIGHTS`` or else ``MODEL.NORTON`` has.

    A norton checkpoint of a whole detector comes first; other weights are loaded into what ``MODEL.NORTON`` says.
    """
    cfg = follow_weights(cfg)
    check_model(cfg)
    with naming_keys(RuntimeError):
        model = build_model(cfg)
    setattr(model, CONFIG, cfg)
    set_labels(model, _labels(cfg))
    opened = open_file(cfg.MODEL.WEIGHTS)
    layout = None if opened is None else opened.layout
    ranks = ranks_from_config(cfg)
    requested, _ = choose_layout(find_candidates(model), single={}, **ranks)
    if layout is None:
        return apply_layout(model, requested, "fresh")
    if requested and _without_wrappers(requested) != _without_wrappers(layout):
        text = ", ".join(f"{name.upper()} {rank}" for name, rank in ranks.items() if rank is not None)
        logger.warning("MODEL.NORTON asks for %s, which is not used: the weights have ranks of their own", text)
    return apply_layout(model, layout, "empty")


def _labels(cfg: CfgNode) -> Labels:
    """What the outputs stand for: as ``MODEL.WEIGHTS`` say, else as the config's data set, if it fits, else COCO's."""
    classes = number_of_classes(cfg)[1]
    named_by = (labels_of_file(open_file(cfg.MODEL.WEIGHTS)), *map(labels_of_dataset, cfg.DATASETS.TEST[:1]))
    for labels in sorted(named_by, key=lambda labels: labels.assumed):
        if len(labels.classes or labels.category_ids) == classes:
            keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0
            return labels if len(labels.keypoints) == keypoints else replace(labels, keypoints=())
    return Labels()


def _without_wrappers(layout: Mapping[str, int]) -> dict[str, int]:
    """A layout by the names that layers have without a wrapper around their convolution."""
    return {name.removesuffix(".conv"): rank for name, rank in layout.items()}


def with_weights(cfg: CfgNode, path: str | Path) -> CfgNode:
    """A config with other ``MODEL.WEIGHTS``."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(path)
    cfg.freeze()
    return cfg


def load_detector(cfg: CfgNode) -> torch.nn.Module:
    """The detector of a config with ``MODEL.WEIGHTS`` loaded, in eval mode."""
    if not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS: expected a trained detector, got none; add MODEL.WEIGHTS FILE")
    return _load(cfg, whole=True)


def _load(cfg: CfgNode, whole: bool) -> torch.nn.Module:
    with reading_once():
        cfg = follow_weights(cfg)
        check_model(cfg)
        check_weights(cfg)
        model = build_detector(cfg)
        NortonCheckpointer(model, whole=whole).load(cfg.MODEL.WEIGHTS)
    return model.eval()

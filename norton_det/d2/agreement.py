"""The config and the weights that it names say the same: of the ResNet, of its input, and of where its strides sit.

A mismatch changes no tensor's shape, and would be silent. What a compressed file says and a config leaves at
Detectron2's default is taken from the file, with a word; where both say something, and not the same, it is an error.
"""

import logging
import re
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..checkpoint.conventions import pixel_values
from ..checkpoint.opened import OpenedWeights
from ..models.architecture import ARCHITECTURES
from ..models.description import NetworkInfo
from ..models.preprocessing import MSRA, Preprocessing
from ..utils.errors import InputError
from .config_values import same_value, value_of
from .files import open_file

logger = logging.getLogger(__name__)
NORTON_OF = {
    "build_resnet_backbone": "build_norton_resnet_backbone",
    "build_resnet_fpn_backbone": "build_norton_resnet_fpn_backbone",
}
"""Detectron2's backbones, and those of the same form with a compressed ResNet."""


def preprocessing_from_config(cfg: CfgNode) -> Preprocessing:
    """Colour order and normalisation that the config gives to a detector."""
    return Preprocessing(cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))


def follow_weights(cfg: CfgNode) -> CfgNode:
    """A config whose backbone is the compressed one that ``MODEL.WEIGHTS`` have, where it names Detectron2's own.

    Detectron2 would build a dense one, match none of the compressed tensors, and train from random values.

    Raises:
        InputError: the config's backbone is of another kind; names the key to set.
    """
    name, weights = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.WEIGHTS
    if name in NORTON_OF.values() or not (isinstance(weights, str) and Path(weights).is_file()):
        return cfg
    info = _compressed(open_file(weights))
    if info is None:
        return cfg
    if name not in NORTON_OF:
        raise InputError(
            f"{weights}: has a compressed ResNet, the config has MODEL.BACKBONE.NAME {name}; set "
            "MODEL.BACKBONE.NAME build_norton_resnet_fpn_backbone"
        )
    followed, defaults = cfg.clone(), get_cfg()
    followed.defrost()
    followed.MODEL.BACKBONE.NAME = NORTON_OF[name]
    told = [f"MODEL.BACKBONE.NAME {NORTON_OF[name]}"]
    for key, value in _keys_of(info.spec.arch, info.preprocessing, info.stride_in_1x1).items():
        section, _, last = key.rpartition(".")
        node, default = (value_of(config, section) for config in (followed, defaults))
        if same_value(node[last], default[last]) and not same_value(node[last], value):
            node[last] = value
            told.append(f"{key} {value}")
    if cfg.is_frozen():
        followed.freeze()
    logger.warning("%s has a compressed ResNet: used with %s", weights, " ".join(told))
    return followed


def stated_input(opened: OpenedWeights, cfg: CfgNode) -> tuple[Preprocessing | None, bool | None]:
    """Preprocessing and stride_in_1x1 that a file says, its ``pixel_mean`` or its family; ``None`` where nothing does.

    Detectors of Detectron2's that say neither are from a training whose config knew: that of the config is taken.
    """
    if opened.described is not None:
        return opened.described.preprocessing, opened.described.stride_in_1x1
    author = str(opened.fields.get("__author__", "")).lower()
    zoo = re.search("model zoo|caffe2|msra", author) is not None
    mean, std = (pixel_values(opened.state.get(name)) for name in ("pixel_mean", "pixel_std"))
    if mean is not None and std is not None:
        color = next((color for color, known in _COLORS.items() if _close(mean, known)), cfg.INPUT.FORMAT)
        stated = Preprocessing(color, mean, std)
        return stated, True if zoo and stated.close_to(MSRA) else None
    try:
        info, resnet = opened.info, opened.resnet
    except InputError:
        return None, None  # another network
    if resnet.naming == "detectron2" and not zoo and "torchvision" not in author:
        return None, None
    return info.preprocessing, info.stride_in_1x1


def check_agreement(cfg: CfgNode, arch: str, has: Preprocessing, stride_in_1x1: bool) -> None:
    """Refuse a config whose ResNet, input or stride is not what ``MODEL.WEIGHTS`` have.

    Raises:
        InputError: names the keys and their values.
    """
    depth = arch.removeprefix("resnet")
    if str(cfg.MODEL.RESNETS.DEPTH) != depth:
        outputs = ARCHITECTURES[arch].outputs[0]
        raise InputError(
            f"{cfg.MODEL.WEIGHTS}: is a {arch}, the config has MODEL.RESNETS.DEPTH {cfg.MODEL.RESNETS.DEPTH}; set "
            f"MODEL.RESNETS.DEPTH {depth} MODEL.RESNETS.RES2_OUT_CHANNELS {outputs}"
        )
    check_input(cfg, has, stride_in_1x1)


def check_input(cfg: CfgNode, has: Preprocessing | None, stride_in_1x1: bool | None) -> None:
    """The part of ``check_agreement`` that concerns the input and the stride; ``None`` is not compared.

    Raises:
        InputError: names all keys that differ.
    """
    preprocessing, stride = preprocessing_from_config(cfg), bool(cfg.MODEL.RESNETS.STRIDE_IN_1X1)
    wanted, actual, keys = [], [], []
    if has is not None and not has.close_to(preprocessing):
        wanted.append(f"input {has}")
        actual.append(str(preprocessing))
        keys.append(f"INPUT.FORMAT {has.color} MODEL.PIXEL_MEAN {list(has.mean)} MODEL.PIXEL_STD {list(has.std)}")
    if stride_in_1x1 is not None and stride_in_1x1 != stride:
        wanted.append(f"MODEL.RESNETS.STRIDE_IN_1X1 {stride_in_1x1}")
        actual.append(str(stride))
        keys.append(f"MODEL.RESNETS.STRIDE_IN_1X1 {stride_in_1x1}")
    if keys:
        raise InputError(
            f"{cfg.MODEL.WEIGHTS}: wants {' and '.join(wanted)}, the config has {' and '.join(actual)}; set "
            + " ".join(keys)
        )


_COLORS = {"RGB": (123.675, 116.28, 103.53), "BGR": (103.53, 116.28, 123.675)}  # means of ImageNet


def _compressed(opened: OpenedWeights | None) -> NetworkInfo | None:
    """What a file of a compressed ResNet is; ``None`` for dense ones and other networks."""
    try:
        info = None if opened is None else opened.info
    except InputError:
        return None
    return None if info is None or info.spec.is_dense else info


def _keys_of(arch: str, preprocessing: Preprocessing, stride_in_1x1: bool) -> dict[str, Any]:
    """The keys of a config that describe a ResNet, and their values."""
    return {
        "MODEL.RESNETS.DEPTH": int(arch.removeprefix("resnet")),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": ARCHITECTURES[arch].outputs[0],
        "MODEL.RESNETS.STRIDE_IN_1X1": stride_in_1x1,
        "INPUT.FORMAT": preprocessing.color,
        "MODEL.PIXEL_MEAN": list(preprocessing.mean),
        "MODEL.PIXEL_STD": list(preprocessing.std),
    }


def _close(mean: tuple[float, ...], known: tuple[float, ...]) -> bool:
    return all(abs(a - b) <= 0.5 for a, b in zip(mean, known, strict=True))

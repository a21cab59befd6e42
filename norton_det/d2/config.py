"""Configuration of the Detectron2 adapter: the keys under ``MODEL.NORTON`` and what they mean together."""

import re
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..models.architecture import ARCHITECTURES
from ..models.description import NetworkInfo
from ..models.spec import CompressionSpec
from ..utils.configs import find_config as find_config  # public here too, beside the keys that it is used with
from ..utils.errors import InputError, naming
from .agreement import check_agreement, check_input, preprocessing_from_config, stated_input
from .files import open_file


def add_norton_config(cfg: CfgNode) -> None:
    """Add ``MODEL.NORTON`` and keys of ``SOLVER``, with defaults, to a Detectron2 config.

    ``MODEL.NORTON`` describes the ResNet of ``build_norton_resnet_backbone`` and ``build_norton_resnet_fpn_backbone``.
    It is not used when ``MODEL.WEIGHTS`` is a norton checkpoint: it carries its own spec.
    """
    # False: weights of a detector that lack a tensor outside the ResNet, or have others besides, are an error. True:
    # what they lack starts anew, what they have besides is left aside. The --partial of tools/train_net.py.
    cfg.MODEL.PARTIAL_WEIGHTS = False
    # The ResNet that is built, to which dense MODEL.WEIGHTS are compressed before training starts. Not used where
    # MODEL.WEIGHTS is a checkpoint of norton_det's: this carries its own ranks and ratios.
    cfg.MODEL.NORTON = CfgNode()
    # A published row of the paper for ResNet-50: norton-43, -50, -64, -77 or -78 (MACs saved in %), or dense. For
    # another MODEL.RESNETS.DEPTH (18, 34, 101, 152): what saves as many MACs there.
    cfg.MODEL.NORTON.PRESET = "norton-78"
    # CP rank of the filters of the 3x3 convolutions: one number (0: dense), or a list or text such as "[1]*8+[2]*8"
    # with one for each (0: that one dense); ResNet-50 and -18 have 16. None: that of PRESET.
    cfg.MODEL.NORTON.RANK = None
    # Pruning ratios, shares of channels to remove: 20 numbers for ResNet-50 (stem; outputs of stages 1 to 3; inner
    # width of 16 blocks), 11 for ResNet-18 (stem and stage 1 together; stages 2 and 3; 8 blocks), as a list or text
    # such as "[0.]+[0.1]*2+[0.4]*5+[0.75]*12". None: those of PRESET.
    cfg.MODEL.NORTON.RATIOS = None
    # Compressed weights are fitted to the dense network's outputs on so many pictures of DATASETS.TRAIN (for neck and
    # heads 64 at most), without their annotations. 0: compressed by the weights alone, as in the paper.
    cfg.MODEL.NORTON.CALIBRATION_IMAGES = 0
    # CP rank of the output convolutions of the FPN and of the RPN's convolution. None leaves them dense, as in the
    # paper.
    cfg.MODEL.NORTON.NECK_RANK = None
    # CP rank of the convolutions of mask and keypoint heads. None leaves them dense, as in the paper.
    cfg.MODEL.NORTON.HEAD_RANK = None
    # Rank of the box head's linear layers, such as 128. None leaves them dense, as in the paper.
    cfg.MODEL.NORTON.BOX_HEAD_RANK = None

    # BASE_LR is for batches of so many images, and scaled linearly to IMS_PER_BATCH (Goyal et al., 2017). 0: as it is.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0
    # Decay of an exponential moving average of the weights, such as 0.999, which is evaluated and kept. 0: none.
    cfg.SOLVER.EMA_DECAY = 0.0
    # Learning from a dense detector beside the labels: three losses are added, see norton_det/d2/distill.py.
    cfg.SOLVER.DISTILL = CfgNode()
    # The trained dense detector to learn from. Empty: labels alone.
    cfg.SOLVER.DISTILL.WEIGHTS = ""
    # Factor of the loss on the FPN's maps. 0 leaves it out.
    cfg.SOLVER.DISTILL.FEATURES = 1.0
    # Factor of the loss on the RPN's objectness. 0 leaves it out.
    cfg.SOLVER.DISTILL.RPN = 1.0
    # Factor of the loss on the classes of the box head. 0 leaves it out.
    cfg.SOLVER.DISTILL.BOX = 1.0


def default_config() -> CfgNode:
    """Detectron2's default config with this package's keys; not frozen."""
    cfg = get_cfg()
    add_norton_config(cfg)
    return cfg


def merge_options(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Put ``KEY VALUE`` pairs into a config that is not frozen.

    Raises:
        InputError: no pairs, an unknown key, or a value of another type; one line with the mend.
    """
    if len(opts) % 2 and not any(word.startswith("--") for word in opts):
        raise InputError(f"options: expected pairs of KEY VALUE, got {len(opts)} words: {' '.join(opts)}")
    for key, value in zip(opts[::2], [*opts[1::2], ""], strict=False):
        if key.startswith("-"):
            raise InputError(f"option {key}: expected KEY VALUE, got a flag; flags go before the first KEY")
        try:
            cfg.merge_from_list([key, _as_float(cfg, key, value)])
        except (KeyError, ValueError, AssertionError, TypeError, AttributeError) as error:
            text = one_line(error)
            mend = "give a value of its type"
            if "Non-existent" in text:
                mend = "Detectron2's keys and MODEL.NORTON.* exist"
            elif "<class 'tuple'>" in text:
                mend = f'a list of one is "({value!r},)"'
            raise InputError(f"option {key}: {text}; {mend}") from None


def _as_float(cfg: CfgNode, key: str, value: Any) -> Any:
    """A whole number, or its text, for a key that is a float as yacs takes it."""
    node: Any = cfg
    for name in key.split("."):
        node = node.get(name) if isinstance(node, CfgNode) else None
    whole = type(value) is int or (isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value))
    return float(value) if whole and isinstance(node, float) else value


def spec_from_config(cfg: CfgNode) -> CompressionSpec:
    """The compression spec that the config asks for; see ``info_from_config`` for the one that is used."""
    node, arch = cfg.MODEL.NORTON, f"resnet{cfg.MODEL.RESNETS.DEPTH}"
    if arch not in ARCHITECTURES:
        known = ", ".join(name.removeprefix("resnet") for name in ARCHITECTURES)
        raise InputError(f"MODEL.RESNETS.DEPTH: expected one of {known}, got {cfg.MODEL.RESNETS.DEPTH}; 50 is usual")
    with naming("MODEL.NORTON.PRESET"):
        spec = CompressionSpec.preset(node.PRESET, arch)
    if node.RANK is None and node.RATIOS is None:
        return spec
    rank: Any = spec.rank if node.RANK is None else node.RANK
    ratios: Any = spec.ratios if node.RATIOS is None else node.RATIOS
    if not isinstance(rank, int | float | str | list | tuple | None):
        raise InputError(f"MODEL.NORTON.RANK: expected a number, list or text, got {rank!r}; write 1")
    if not isinstance(ratios, str | list | tuple):
        raise InputError(f"MODEL.NORTON.RATIOS: expected a list or text, got {ratios!r}; write [0.]+[0.28]*19")
    try:
        return CompressionSpec.parse(rank=None if rank == 0 else rank, ratios=ratios, arch=arch)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"MODEL.NORTON: {error}") from None


def ranks_from_config(cfg: CfgNode) -> dict[str, int | None]:
    """``neck_rank``, ``head_rank`` and ``box_head_rank`` as ``compress_detector`` and ``choose_layout`` take them."""
    return {name: cfg.MODEL.NORTON[name.upper()] for name in ("neck_rank", "head_rank", "box_head_rank")}


def info_from_config(cfg: CfgNode) -> NetworkInfo:
    """Spec, preprocessing and stride of the backbone to build.

    The spec is that of ``MODEL.WEIGHTS`` when this is a norton checkpoint, else that of ``MODEL.NORTON``; the config's
    preprocessing has to agree with what the weights say of theirs.

    Raises:
        InputError: the config's DEPTH, INPUT.FORMAT, PIXEL_MEAN, PIXEL_STD or STRIDE_IN_1X1 are not those of the
            weights, or its RES2_OUT_CHANNELS not those of the ResNet.
    """
    preprocessing, stride = preprocessing_from_config(cfg), bool(cfg.MODEL.RESNETS.STRIDE_IN_1X1)
    opened = open_file(cfg.MODEL.WEIGHTS)
    info = None if opened is None else opened.described
    if info is None:
        if opened is not None:
            check_input(cfg, *stated_input(opened, cfg))
        info = NetworkInfo(spec_from_config(cfg), preprocessing, 0, stride)
    else:
        check_agreement(cfg, info.spec.arch, info.preprocessing, info.stride_in_1x1)
    outputs = info.spec.architecture.outputs[0]
    if cfg.MODEL.RESNETS.RES2_OUT_CHANNELS != outputs:
        raise InputError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS: expected {outputs} for {info.spec.arch}, got "
            f"{cfg.MODEL.RESNETS.RES2_OUT_CHANNELS}; set it to {outputs}"
        )
    return info


def one_line(error: BaseException) -> str:
    """The message of a configuration error, its lines joined, at most 300 characters."""
    text: Any = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())[:300] or type(error).__name__

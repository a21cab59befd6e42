"""Configuration of the Detectron2 adapter: the keys under ``MODEL.NORTON`` and what they mean together."""

from typing import Any

from detectron2.config import CfgNode

from ..checkpoint import CheckpointInfo
from ..config_files import find_config as find_config
from ..errors import InputError
from ..preprocessing import Preprocessing
from ..spec import CompressionSpec
from .files import read_checkpoint_info


def add_norton_config(cfg: CfgNode) -> None:
    """Add ``MODEL.NORTON`` and keys of ``SOLVER``, with defaults, to a Detectron2 config.

    ``MODEL.NORTON`` describes the ResNet of ``build_norton_resnet_backbone`` and ``build_norton_resnet_fpn_backbone``.
    It is not used when ``MODEL.WEIGHTS`` is a norton checkpoint: it carries its own spec.
    """
    # True: what weights of a detector lack outside the ResNet starts anew, and what they have besides is left aside;
    # False: both are errors.
    cfg.MODEL.PARTIAL_WEIGHTS = False
    cfg.MODEL.NORTON = CfgNode()
    # A published row of the paper: norton-43, -50, -64, -77, -78 (MACs saved in %), or dense.
    cfg.MODEL.NORTON.PRESET = "norton-78"
    # CP rank R of the filters of the 3x3 convolutions: one number (0: dense), a list or text like "[1]*8+[2]*8" with
    # one per block; None: that of PRESET.
    cfg.MODEL.NORTON.RANK = None
    # Pruning ratios: 20 numbers for ResNet-50 (stem, 3 stages, 16 blocks), as a list or text like
    # "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"; None: those of PRESET.
    cfg.MODEL.NORTON.RATIOS = None
    # Dense MODEL.WEIGHTS are compressed before training and then fitted to so many pictures of DATASETS.TRAIN (for
    # neck and heads 64 at most), without their annotations; 0: by the weights alone, as in the paper.
    cfg.MODEL.NORTON.CALIBRATION_IMAGES = 0
    # The layers around the ResNet; None leaves them dense, as in the paper.
    # CP rank of the FPN's output convolutions and of the RPN's.
    cfg.MODEL.NORTON.NECK_RANK = None
    # CP rank of the convolutions of mask and keypoint heads.
    cfg.MODEL.NORTON.HEAD_RANK = None
    # Rank of the box head's linear layers, such as 128.
    cfg.MODEL.NORTON.BOX_HEAD_RANK = None

    # BASE_LR is for batches of so many images, and scaled linearly to IMS_PER_BATCH (Goyal et al., 2017); 0: as it is.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0
    # Decay of an exponential moving average of the weights, such as 0.999, which is evaluated and kept; 0: none.
    cfg.SOLVER.EMA_DECAY = 0.0
    # The trained dense detector to learn from, see d2/distill.py; empty: labels alone.
    cfg.SOLVER.DISTILL = CfgNode()
    cfg.SOLVER.DISTILL.WEIGHTS = ""
    # Factors of its three losses: the FPN's maps, the RPN's objectness, the classes of the box head; 0 leaves one out.
    cfg.SOLVER.DISTILL.FEATURES = 1.0
    cfg.SOLVER.DISTILL.RPN = 1.0
    cfg.SOLVER.DISTILL.BOX = 1.0


def spec_from_config(cfg: CfgNode) -> CompressionSpec:
    """The compression spec that the config asks for; see ``info_from_config`` for the one that is used."""
    node, arch = cfg.MODEL.NORTON, f"resnet{cfg.MODEL.RESNETS.DEPTH}"
    spec = CompressionSpec.dense(arch) if node.PRESET == "dense" else CompressionSpec.preset(node.PRESET)
    if node.RANK is None and node.RATIOS is None:
        if spec.arch != arch:
            raise InputError(
                f"MODEL.NORTON.PRESET: {node.PRESET} is for {spec.arch}, got MODEL.RESNETS.DEPTH "
                f"{cfg.MODEL.RESNETS.DEPTH}; give MODEL.NORTON.RANK and MODEL.NORTON.RATIOS for {arch}"
            )
        return spec
    rank: Any = spec.rank if node.RANK is None else node.RANK
    ratios: Any = spec.ratios if node.RATIOS is None else node.RATIOS
    if not isinstance(rank, int | float | str | list | tuple | None):
        raise InputError(f"MODEL.NORTON.RANK: expected a number, list or text, got {rank!r}; write 1")
    if not isinstance(ratios, str | list | tuple):
        raise InputError(f"MODEL.NORTON.RATIOS: expected a list or text, got {ratios!r}; write [0.]+[0.28]*19")
    try:
        return CompressionSpec.parse(rank=None if rank == 0 else rank, ratios=ratios, arch=arch)
    except InputError as error:
        raise InputError(f"MODEL.NORTON: {error}") from None


def ranks_from_config(cfg: CfgNode) -> dict[str, int | None]:
    """``neck_rank``, ``head_rank`` and ``box_head_rank`` as ``compress_detector`` and ``choose_layout`` take them."""
    return {name: cfg.MODEL.NORTON[name.upper()] for name in ("neck_rank", "head_rank", "box_head_rank")}


def preprocessing_from_config(cfg: CfgNode) -> Preprocessing:
    """Colour order and normalisation that the config gives to a detector."""
    return Preprocessing(cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))


def info_from_config(cfg: CfgNode) -> CheckpointInfo:
    """Spec, preprocessing and stride of the backbone to build.

    The spec is that of ``MODEL.WEIGHTS`` when this is a norton checkpoint (and the config's preprocessing has to
    agree with it), else that of ``MODEL.NORTON``.

    Raises:
        InputError: the config's INPUT.FORMAT, PIXEL_MEAN, PIXEL_STD or STRIDE_IN_1X1 are not those of the weights.
    """
    wanted, stride = preprocessing_from_config(cfg), bool(cfg.MODEL.RESNETS.STRIDE_IN_1X1)
    info = read_checkpoint_info(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    if info is None:
        return CheckpointInfo(spec_from_config(cfg), wanted, 0, stride)
    check_agreement(cfg, info.preprocessing, info.stride_in_1x1)
    return info


def check_agreement(cfg: CfgNode, has: Preprocessing, stride_in_1x1: bool) -> None:
    """Refuse a config whose input or stride is not what ``MODEL.WEIGHTS`` have.

    Raises:
        InputError: names the keys and their values.
    """
    wanted, stride = preprocessing_from_config(cfg), bool(cfg.MODEL.RESNETS.STRIDE_IN_1X1)
    if not has.close_to(wanted):
        raise InputError(
            f"{cfg.MODEL.WEIGHTS}: wants input {has}, the config has {wanted}; set INPUT.FORMAT {has.color} "
            f"MODEL.PIXEL_MEAN {list(has.mean)} MODEL.PIXEL_STD {list(has.std)}"
        )
    if stride_in_1x1 != stride:
        raise InputError(
            f"{cfg.MODEL.WEIGHTS}: wants MODEL.RESNETS.STRIDE_IN_1X1 {stride_in_1x1}, the config has {stride}; "
            f"set it to {stride_in_1x1}"
        )

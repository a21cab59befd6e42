"""Weights of every origin as a detector with Detectron2's own ResNet names them: below ``backbone.bottom_up`` with an
FPN, below ``backbone`` without, the last stage in ``roi_heads`` where Res5ROIHeads have it.
"""

from collections.abc import Iterable

from torch import Tensor

from ..checkpoint.load import load_weights
from ..checkpoint.opened import OpenedWeights
from ..models.keys import torchvision_to_d2
from ..utils.errors import InputError

CLASSIFIER = ("fc.weight", "fc.bias")


def own_prefix(names: Iterable[str]) -> str:
    """What stands before the names of the ResNet in a detector with these tensors."""
    return "backbone." if any(name.startswith("backbone.stem.") for name in names) else "backbone.bottom_up."


def has_resnet(opened: OpenedWeights) -> bool:
    """Whether a file has a ResNet by any names that are known; else it is of another backbone."""
    try:
        return bool(opened.resnet.state)
    except InputError:
        return False


def is_detectron2(opened: OpenedWeights) -> bool:
    """Whether a file has a detector of Detectron2's, of whatever form."""
    by_name = opened.resnet.naming == "detectron2" and "backbone." in opened.resnet.prefix
    return by_name or opened.stack == "detectron2"


def state_for(opened: OpenedWeights, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a file, by the names of a detector of Detectron2's.

    Args:
        opened: a detector of Detectron2's, or a ResNet of any origin; those of another backbone are left as they are.
        names: of the detector's tensors.

    Raises:
        InputError: the file has a compressed ResNet.
    """
    names = set(names)
    if not has_resnet(opened):
        return opened.state
    resnet = opened.resnet
    neck = any(name.startswith("backbone.fpn_") for name in names)
    if any(name.endswith(".pointwise.weight") for name in resnet.state):
        raise InputError(
            f"{opened.source}: has a compressed ResNet, this detector a dense one; set MODEL.BACKBONE.NAME "
            f"build_norton_resnet_{'fpn_' if neck else ''}backbone, or build it by norton_det.d2.build.build_detector"
        )
    if is_detectron2(opened):
        state, around = resnet.state, opened.around
    else:
        state, around = _resnet_alone(opened), {}
    prefix, renamed = own_prefix(names), {}
    for name, tensor in state.items():
        if name not in CLASSIFIER:
            short = torchvision_to_d2(name)
            in_heads = f"roi_heads.{short}" in names and f"{prefix}{short}" not in names
            renamed[f"roi_heads.{short}" if in_heads else f"{prefix}{short}"] = tensor
    return around | renamed


def _resnet_alone(opened: OpenedWeights) -> dict[str, Tensor]:
    try:
        return load_weights(opened).state
    except InputError:  # one of groups or other widths, which Detectron2's takes
        return opened.resnet.state

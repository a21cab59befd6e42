"""Parameter names of whole detectors: what stands around a ResNet, whose it is, and names of older versions.

The ResNet of a detector is below one of ``ROLES``; what stands before that, such as ``module.`` of
``DistributedDataParallel``, ``_orig_mod.`` of ``torch.compile`` or ``model.`` of a Lightning module, is no part of the
detector's names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

ROLES = ("backbone.bottom_up.", "backbone.body.", "backbone.")
"""Where a detector has its ResNet: Detectron2's with FPN, torchvision's, and Detectron2's without FPN."""

_OLD_NAMES = (  # before torchvision 0.13; its modules rename them in _load_from_state_dict
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
)
_OLD_MASK_LAYER = re.compile(r"(roi_heads\.mask_head)\.mask_fcn(\d+)\.(weight|bias)")  # before 0.14, counted from 1


@dataclass(frozen=True)
class Family:
    """Networks of other projects that have a ResNet among their tensors.

    Attributes:
        name: whose they are.
        pattern: of how a name begins that others do not have.
        mend: what can be done with the whole network.
        readable: whether the ResNet has names that are known here.
    """

    name: str
    pattern: re.Pattern[str]
    mend: str
    readable: bool = True


_BACKBONE = "norton-det compress without --config takes its backbone, to train a detector on"
FAMILIES = tuple(
    Family(name, re.compile(pattern), mend, *readable)
    for name, pattern, mend, *readable in (
        (
            "a maskrcnn-benchmark detector",
            r"backbone\.body\.stem\.|roi_heads\.(?:box|mask|keypoint)\.",
            "use torchvision's or Detectron2's weights of such a detector",
            False,
        ),
        ("a Detectron2 detector without FPN (C4 or DC5)", r"backbone\.(?:stem|res\d)\.", _BACKBONE),
        ("an MMDetection detector", r"neck\.\w+_convs\.|rpn_head\.|roi_head\.|bbox_head\.", _BACKBONE),
        ("an MMSegmentation network", r"decode_head\.", _BACKBONE),
        ("a DETR detector", r"transformer\.(?:encoder|decoder)\.|class_embed\.", _BACKBONE),
        ("torchvision's RetinaNet or FCOS", r"head\.(?:classification|regression)_head\.", _BACKBONE),
        ("torchvision's FCN or DeepLab", r"classifier\.\d+\.|aux_classifier\.", _BACKBONE),
        ("a Caffe2 detector", r"conv_rpn(?:_fpn2)?_w$|fpn_inner_res|cls_score_w$", _BACKBONE),
        ("DINO", r"head\.(?:mlp\.|last_layer\.)", "its backbone is what can be used"),
        ("MoCo", r"queue$|queue_ptr$|momentum_encoder\.", "its backbone is what can be used"),
        ("SwAV", r"prototypes\.", "its backbone is what can be used"),
        ("BYOL", r"(?:online|target)_(?:net|network|encoder)\.", "its backbone is what can be used"),
        ("self-supervised training", r"(?:projector|projection_head|predictor|fc\.\d)\.", _BACKBONE),
    )
)


def split_prefix(prefix: str) -> tuple[str, str]:
    """What stands before a ResNet's names as what wraps the network, and the one of ``ROLES``; either may be empty."""
    role = next((role for role in ROLES if prefix == role or prefix.endswith(f".{role}")), "")
    return prefix.removesuffix(role), role


def family_of(state: Iterable[str], outside: Iterable[str]) -> Family | None:
    """The family that a network is of; ``None`` for those that are read whole.

    Args:
        state: names of its tensors.
        outside: names of tensors that are in its file besides, with whatever stands before them.
    """
    inside, beside = list(state), list(outside)
    return next(
        (
            family
            for family in FAMILIES
            if any(map(family.pattern.match, inside))
            or any(family.pattern.match(name, start) for name in beside for start in _starts(name))
        ),
        None,
    )


def _starts(name: str) -> list[int]:
    """Where the parts of a dotted name begin, the first eight."""
    return [0, *(match.end() for match in re.finditer(r"\.", name))][:8]


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision detector's tensors by the names of today's torchvision, as its own ``load_state_dict`` has them."""
    return {_current_name(name): tensor for name, tensor in state.items()}


def _current_name(name: str) -> str:
    for pattern, replacement in _OLD_NAMES:
        if pattern.fullmatch(name):
            return pattern.sub(replacement, name)
    if match := _OLD_MASK_LAYER.fullmatch(name):
        return f"{match[1]}.{int(match[2]) - 1}.0.{match[3]}"
    return name

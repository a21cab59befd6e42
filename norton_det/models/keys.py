"""Parameter names of a ResNet in torchvision, Detectron2, Caffe2 (Detectron), and the NORTON release.

============  =======================  ========================  ===========================
torchvision   Detectron2               Caffe2                    what
============  =======================  ========================  ===========================
conv1         stem.conv1               conv1                     stem convolution
bn1           stem.conv1.norm          res_conv1_bn              its normalisation
layer1.0      res2.0                   res2_0                    first block of first stage
.conv1        .conv1                   _branch2a                 1x1 (conv2: 2b, conv3: 2c)
.bn1          .conv1.norm              _branch2a_bn              its normalisation
.downsample   .shortcut                _branch1                  projection (0 conv, 1 norm)
fc            linear                   fc1000, pred              classifier
============  =======================  ========================  ===========================

Basic blocks (ResNet-18, -34) have conv1 and conv2, both 3x3, under the same names. A decomposed 3x3 convolution, such
as a bottleneck's conv2, has ``conv2.pointwise/vertical/horizontal`` in the first two; in the release's files it is
``conv2.feature.pointwise``... with components rank-major (channel ``r*O + o``), here filter-major (``o*R + r``).

A network whose children were put into a plain ``Sequential`` has torchvision's names with numbers for the outer ones:
0 for conv1, 1 for bn1, 4 to 7 for the stages. OpenMMLab calls the classifier ``head.fc`` beside ``backbone``.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..utils.errors import InputError

_STATISTICS = "weight|bias|running_mean|running_var|num_batches_tracked"
_CP = r"(?:pointwise\.|vertical\.|horizontal\.)?weight"

_TORCHVISION = re.compile(
    r"(?:conv1\.weight|bn1\.(?P<stem>STAT)|fc\.(?P<fc>weight|bias)"
    r"|layer(?P<stage>[1-4])\.(?P<block>\d+)\."
    r"(?:conv(?P<conv>[123])\.(?P<cp>CP)|bn(?P<bn>[123])\.(?P<norm>STAT)"
    r"|downsample\.0\.(?P<proj>weight)|downsample\.1\.(?P<projnorm>STAT)))".replace("STAT", _STATISTICS).replace(
        "CP", _CP
    )
)
_D2 = re.compile(
    r"(?:stem\.conv1\.weight|stem\.conv1\.norm\.(?P<stem>STAT)|linear\.(?P<fc>weight|bias)"
    r"|res(?P<stage>[2-5])\.(?P<block>\d+)\."
    r"(?:conv(?P<conv>[123])\.(?P<cp>CP)|conv(?P<bn>[123])\.norm\.(?P<norm>STAT)"
    r"|shortcut\.(?P<proj>weight)|shortcut\.norm\.(?P<projnorm>STAT)))".replace("STAT", _STATISTICS).replace("CP", _CP)
)
_CAFFE2 = re.compile(
    r"(?:conv1_w|res_conv1_bn_(?P<stem>\w+)|(?:fc1000|pred)_(?P<fc>[wb])"
    r"|res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2[abc])_(?:(?P<w>w)|bn_(?P<norm>\w+)))"
)
_CAFFE2_STATISTICS = {
    "s": "weight",
    "gamma": "weight",
    "b": "bias",
    "beta": "bias",
    "rm": "running_mean",
    "running_mean": "running_mean",
    "riv": "running_var",
    "running_var": "running_var",
}

_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_FIRST_CONV = re.compile(  # the first convolution of the first block shows prefix and naming
    rf"(?P<prefix>(?:.*\.)?)(?:(?P<torchvision>layer1\.0\.conv1\.(?:feature\.)?{_CP})|(?P<detectron2>res2\.0\.conv1\.{_CP})"
    r"|(?P<caffe2>res2_0_branch2a_w)|(?P<sequential>4\.0\.conv1\.weight))"
)
_ROOTS = {  # what belongs to the ResNet under its prefix
    "torchvision": re.compile(r"(conv1|bn1|layer\d+)\.|fc\.(weight|bias)$"),
    "detectron2": re.compile(r"(stem|res\d+|linear)\."),
    "caffe2": re.compile(r"(conv1_|res_conv1_|res\d+_|fc1000_|pred_)"),
    "sequential": re.compile(r"[014567]\."),
}


def torchvision_to_d2(name: str) -> str:
    """Detectron2's name of a parameter or buffer of torchvision's ResNet (also with CP layers); a bijection.

    Raises:
        InputError: torchvision's ResNet has no such name.
    """
    match = _TORCHVISION.fullmatch(name)
    if match is None:
        raise InputError(f"{name}: expected a name of torchvision's ResNet such as layer1.0.conv1.weight; check it")
    if match["stage"] is None:
        if match["fc"]:
            return f"linear.{match['fc']}"
        return f"stem.conv1.norm.{match['stem']}" if match["stem"] else "stem.conv1.weight"
    block = f"res{int(match['stage']) + 1}.{match['block']}"
    if match["conv"]:
        return f"{block}.conv{match['conv']}.{match['cp']}"
    if match["bn"]:
        return f"{block}.conv{match['bn']}.norm.{match['norm']}"
    return f"{block}.shortcut.weight" if match["proj"] else f"{block}.shortcut.norm.{match['projnorm']}"


def d2_to_torchvision(name: str) -> str:
    """torchvision's name of a parameter or buffer of Detectron2's ResNet; inverse of ``torchvision_to_d2``.

    Raises:
        InputError: Detectron2's ResNet has no such name.
    """
    match = _D2.fullmatch(name)
    if match is None:
        raise InputError(f"{name}: expected a name of Detectron2's ResNet such as res2.0.conv1.weight; check it")
    if match["stage"] is None:
        if match["fc"]:
            return f"fc.{match['fc']}"
        return f"bn1.{match['stem']}" if match["stem"] else "conv1.weight"
    block = f"layer{int(match['stage']) - 1}.{match['block']}"
    if match["conv"]:
        return f"{block}.conv{match['conv']}.{match['cp']}"
    if match["bn"]:
        return f"{block}.bn{match['bn']}.{match['norm']}"
    return f"{block}.downsample.0.weight" if match["proj"] else f"{block}.downsample.1.{match['projnorm']}"


def caffe2_to_torchvision(name: str) -> str:
    """torchvision's name of a blob of Caffe2's ResNet, such as ``res2_0_branch2a_bn_s``.

    Raises:
        InputError: Caffe2's ResNet has no such blob.
    """
    match = _CAFFE2.fullmatch(name)
    statistic = match and (match["stem"] or match["norm"])
    if match is None or (statistic and statistic not in _CAFFE2_STATISTICS):
        raise InputError(f"{name}: expected a blob of Caffe2's ResNet such as res2_0_branch2a_w; use such a file")
    field = _CAFFE2_STATISTICS[statistic] if statistic else "weight"
    if match["stage"] is None:
        if match["fc"]:
            return "fc.weight" if match["fc"] == "w" else "fc.bias"
        return f"bn1.{field}" if statistic else "conv1.weight"
    block = f"layer{int(match['stage']) - 1}.{match['block']}"
    if match["branch"] == "1":
        return f"{block}.downsample.{1 if statistic else 0}.{field}"
    return f"{block}.{'bn' if statistic else 'conv'}{'abc'.index(match['branch'][1]) + 1}.{field}"


@dataclass(frozen=True)
class ResNetPart:
    """The ResNet inside a state dict.

    Attributes:
        prefix: what stands before its names, "" for a bare ResNet.
        naming: whose names they were: "torchvision", "detectron2", "caffe2" or "sequential".
        released: whether they were of the NORTON release (``conv2.feature``); components are filter-major now.
        state: its tensors in torchvision's names.
        rest: all other entries, in their own names.
    """

    prefix: str
    naming: str
    released: bool
    state: dict[str, Tensor]
    rest: dict[str, Any]


def split_detector_state(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
    """Split a detector's state dict into its ResNet and the rest.

    Detectors of torchvision (``backbone.body.``), of Detectron2 (``backbone.bottom_up.`` with its own or with
    torchvision's names), and bare ResNets (prefix "").

    Args:
        state: name -> tensor; untouched.

    Returns:
        prefix of the ResNet's names; its tensors in torchvision's names; the rest in their own names.

    Raises:
        InputError: there is no ResNet in it, or it has a layer of another network.
    """
    resnet = find_resnet(state)
    return resnet.prefix, resnet.state, resnet.rest


def resnets_in(names: Iterable[str]) -> dict[str, str]:
    """Prefix -> naming of every ResNet whose first block is among the names, in their order."""
    matches = [match for match in map(_FIRST_CONV.fullmatch, names) if match]
    numbered = all(match["sequential"] for match in matches)  # else such a name is of another part of the network
    return {
        match["prefix"]: next(key for key in _ROOTS if match[key])
        for match in matches
        if numbered or not match["sequential"]
    }


def find_resnet(state: Mapping[str, Any]) -> ResNetPart:
    """Find the ResNet of a state dict by the names of its first block, and give its tensors torchvision's names.

    Every naming scheme is known: torchvision's, Detectron2's, Caffe2's, and that of the NORTON release, whose
    components are put in filter-major order; below any prefix.

    Raises:
        InputError: no ResNet, several, names of another network, or two tensors for one name.
    """
    resnets = resnets_in(state)
    if not resnets:
        raise InputError(
            f"expected ResNet-18, -34, -50, -101 or -152 weights, got {_describe(state)}; use one of these"
        )
    if len(resnets) > 1:
        prefixes = [prefix.removesuffix(".")[:60] or "no prefix" for prefix in resnets]
        raise InputError(
            f"expected one network, got {len(prefixes)}, below {', '.join(prefixes[:4])}; save the tensors of one of "
            "them to a file"
        )
    (prefix, naming), *_ = resnets.items()
    classifier = f"{prefix.removesuffix('backbone.')}head.fc." if prefix.endswith("backbone.") else f"{prefix}fc."
    renamed: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    released = False
    for name, tensor in state.items():
        is_classifier = naming == "torchvision" and name.startswith(classifier)
        short_name = f"fc.{name.removeprefix(classifier)}" if is_classifier else name.removeprefix(prefix)
        if not (is_classifier or name.startswith(prefix)) or not _ROOTS[naming].match(short_name):
            rest[name] = tensor
            continue
        if short_name.endswith(("total_ops", "total_params")):  # left behind by a FLOP counter
            continue
        if naming == "caffe2" and re.fullmatch(r".*_momentum|(conv1|res\d_\d+_branch(1|2[abc]))_b", short_name):
            continue  # Detectron and Detectron2 give these convolutions no bias and leave these blobs out too
        target = _RENAME[naming](short_name)
        released |= short_name != target and ".feature." in short_name
        if target in renamed:
            raise InputError(f"{name}: expected one tensor for {target}, got two; use the weights of one network")
        renamed[target] = tensor
    return ResNetPart(prefix, naming, released, _filter_major(renamed) if released else renamed, rest)


def _from_torchvision(name: str) -> str:
    """torchvision's names as they are; the NORTON release has its own for the factors of a CP layer alone."""
    renamed = re.sub(r"\.(conv\d)\.feature\.(pointwise|vertical|horizontal)\.", r".\1.\2.", name)
    if not _TORCHVISION.fullmatch(renamed):
        raise InputError(f"{name}: expected only layers of a ResNet; {_hint(name)}")
    return renamed


def _from_d2(name: str) -> str:
    # a conversion of torchvision's weights calls the classifier stem.fc
    return d2_to_torchvision(re.sub(r"^stem\.fc\.", "linear.", name))


def _from_sequential(name: str) -> str:
    number, _, field = name.partition(".")
    return _from_torchvision(f"{_SEQUENTIAL[number]}.{field}")


_RENAME: dict[str, Callable[[str], str]] = {
    "torchvision": _from_torchvision,
    "detectron2": _from_d2,
    "caffe2": caffe2_to_torchvision,
    "sequential": _from_sequential,
}


def _hint(name: str) -> str:
    if re.search(r"conv2\.[01]\.|conv\d\.bias", name):
        return "a fused (deploy) network has such ones, use the checkpoint it was made from"
    return "another network has such ones, use one of these"


def _filter_major(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reorder the components of every CP layer from ``r*O + o`` to ``o*R + r``."""
    ordered = dict(state)
    for name, tensor in state.items():
        match = re.fullmatch(r"(layer\d\.\d+)\.conv(\d)\.(?:pointwise|vertical|horizontal)\.weight", name)
        if match is None:
            continue
        norm = state.get(f"{match[1]}.bn{match[2]}.weight")
        filters = 0 if norm is None else norm.shape[0]
        if not filters or tensor.ndim != 4 or tensor.shape[0] % filters:
            raise InputError(
                f"{name}: expected rank * filters rows of 4 dimensions, got shape {tuple(tensor.shape)} "
                f"for {filters} filters; get the file again"
            )
        ordered[name] = tensor.unflatten(0, (-1, filters)).transpose(0, 1).flatten(0, 1)  # (R, O, ...) -> (O*R, ...)
    return ordered


def _describe(state: Mapping[str, Any]) -> str:
    """What a state dict without a ResNet seems to hold, for the message."""
    names = [str(name) for name in state]
    if not names:
        return "no tensors"
    if any("features." in name for name in names):
        return f"those of VGG, MobileNet or alike (first: {names[0][:60]})"
    if any(word in name for name in names for word in ("attn", "attention", "cls_token", "class_token")):
        return f"those of a vision transformer (first: {names[0][:60]})"
    return f"unknown names (first: {names[0][:60]})"

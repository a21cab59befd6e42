"""The compressed ResNet as torchvision's ``BackboneWithFPN``.

torchvision's own ``resnet_fpn_backbone`` doubles one width from stage to stage, which a pruned network does not
follow; here the widths come from the spec. Parameter names are torchvision's (``body.layer1.0.conv1.weight``).
"""

import warnings
from pathlib import Path

from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..checkpoint.load import load_resnet
from ..models.description import NetworkInfo
from ..models.preprocessing import Preprocessing
from ..models.resnet import NortonResNet
from ..models.spec import CompressionSpec
from ..utils.errors import InputError

LAYERS = ("layer4", "layer3", "layer2", "layer1", "conv1")  # trainable from the left
DEFAULT_TRAINABLE = 3
FPN_CHANNELS = 256


def backbone_weights(source: str | Path | NortonResNet | object) -> tuple[NetworkInfo, dict[str, Tensor], str]:
    """Backbone weights for RGB images: what they are, their tensors without the classifier, and their name.

    Weights that want BGR get the input channels of their first convolution reversed, and mean and std with
    them: the same network, on RGB images, as torchvision reads them.

    Raises:
        InputError: neither a norton checkpoint nor a ``NortonResNet``.
    """
    if isinstance(source, str | Path):
        model, name = load_resnet(source), str(source)
    elif isinstance(source, NortonResNet):
        model, name = source, "weights_backbone"
    else:
        raise InputError(
            f"weights_backbone: expected the path of a norton checkpoint or a NortonResNet, got "
            f"{type(source).__name__}; compress other weights first (norton-det compress)"
        )
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("fc.")}
    preprocessing = model.preprocessing
    if preprocessing.color == "BGR":
        if "conv1.weight" in state:
            state["conv1.weight"] = state["conv1.weight"].flip(1)  # (O, 3, 7, 7)
        preprocessing = Preprocessing("RGB", preprocessing.mean[::-1], preprocessing.std[::-1])
    return NetworkInfo(model.spec, preprocessing, 0, model.stride_in_1x1), state, name


def resnet_fpn(
    info: NetworkInfo,
    trained: bool,
    trainable_layers: int | None,
    channels: int = FPN_CHANNELS,
    norm: type[nn.Module] | None = None,
) -> BackboneWithFPN:
    """ResNet with FPN: images (N, 3, H, W) -> maps "0".."3" and "pool" of ``channels`` at strides 4 to 64.

    The FPN has normalisations of class ``norm``, where that is given.

    As in torchvision: batch normalisation is frozen where weights are given, and then the last
    ``trainable_layers`` of the five groups (conv1, layer1..4) train, 3 by default; a fresh network trains whole.

    Raises:
        InputError: ``trainable_layers`` is not 0 to 5.
    """
    if trainable_layers is not None and not trained:
        warnings.warn("trainable_backbone_layers has no effect without weights: all layers train", stacklevel=5)
    if trainable_layers is None:
        trainable_layers = DEFAULT_TRAINABLE
    if isinstance(trainable_layers, bool) or trainable_layers not in range(6):
        raise InputError(f"trainable_backbone_layers: expected 0 to 5, got {trainable_layers}; 5 trains all")
    body = NortonResNet(info.spec, 0, info.stride_in_1x1, FrozenBatchNorm2d if trained else nn.BatchNorm2d)
    if trained:
        train = (*LAYERS[:trainable_layers], *(("bn1",) if trainable_layers == 5 else ()))
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(name.startswith(train) if train else False)
    widths = [body.feature_channels[f"res{stage}"] for stage in (2, 3, 4, 5)]
    levels = {f"layer{stage + 1}": str(stage) for stage in range(4)}
    return BackboneWithFPN(body, levels, widths, channels, LastLevelMaxPool(), norm)


def choose_spec(
    requested: str | CompressionSpec | None, stored: CompressionSpec | None, default: str
) -> CompressionSpec:
    """The spec to build: that of the weights, else the given one or the default preset.

    Raises:
        InputError: a spec was given and the weights are of another network.
    """
    if isinstance(requested, str):
        requested = CompressionSpec.preset(requested, stored.arch if stored else "resnet50")
    if requested is not None and not isinstance(requested, CompressionSpec):
        raise InputError(f"spec: expected a preset's name or a CompressionSpec, got {type(requested).__name__}")
    if stored is None:
        return CompressionSpec.preset(default) if requested is None else requested
    if requested is not None and not requested.same_network(stored):
        raise InputError(f"spec: expected that of the weights, {stored}, got {requested}; leave spec out")
    return stored

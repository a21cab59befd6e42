"""Registry entries: the compressed ResNet as a Detectron2 backbone, alone and with FPN.

``MODEL.BACKBONE.NAME: build_norton_resnet_fpn_backbone`` puts it into any Detectron2 config. Parameter names are
those of the core network (torchvision's), below ``backbone.bottom_up.``: one network, one key scheme.
"""

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from ..models.description import NetworkInfo
from ..models.resnet import FEATURE_STRIDES, NortonResNet
from ..utils.errors import InputError
from .config import info_from_config


class NortonResNetBackbone(NortonResNet, Backbone):
    """The compressed ResNet with Detectron2's backbone interface: image (N, 3, H, W) -> {feature name: map}.

    Args:
        info: spec, preprocessing, and where strides sit.
        norm: Detectron2's name of the normalisation: FrozenBN, BN, SyncBN, GN.
        out_features: any of stem, res2, res3, res4, res5.
        freeze_at: 0 none, 1 the stem, 2 the stem and res2, ... 5 all; frozen parts get FrozenBN.
    """

    def __init__(self, info: NetworkInfo, norm: str, out_features: tuple[str, ...], freeze_at: int) -> None:
        unknown = [name for name in out_features if name not in FEATURE_STRIDES]
        if unknown or not out_features:
            raise InputError(
                f"MODEL.RESNETS.OUT_FEATURES: expected some of {', '.join(FEATURE_STRIDES)}, got {list(out_features)}"
            )
        if not 0 <= freeze_at <= 5:
            raise InputError(f"MODEL.BACKBONE.FREEZE_AT: expected 0 to 5, got {freeze_at}; 2 is usual")
        super().__init__(info.spec, 0, info.stride_in_1x1, lambda width: _norm(norm, width))
        self.preprocessing = info.preprocessing
        self.out_features = out_features
        self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> None:
        groups = [["conv1", "bn1"]] + [[f"layer{stage}"] for stage in range(1, 5)]
        for name in (name for group in groups[:freeze_at] for name in group):
            module = self.get_submodule(name)
            for parameter in module.parameters():
                parameter.requires_grad = False
            setattr(self, name, FrozenBatchNorm2d.convert_frozen_batchnorm(module))

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]  # as Detectron2's backbones
        features = self.forward_features(x)
        return {name: features[name] for name in self.out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        channels = self.feature_channels
        return {name: ShapeSpec(channels=channels[name], stride=FEATURE_STRIDES[name]) for name in self.out_features}


@BACKBONE_REGISTRY.register()
def build_norton_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NortonResNetBackbone:
    """The compressed ResNet alone. Keys: MODEL.NORTON.*, MODEL.WEIGHTS (its own spec comes first),
    MODEL.RESNETS.{DEPTH,NORM,OUT_FEATURES,STRIDE_IN_1X1}, MODEL.BACKBONE.FREEZE_AT.
    """
    if input_shape.channels != 3:
        raise InputError(f"MODEL.PIXEL_MEAN: expected 3 channels, got {input_shape.channels}; use colour images")
    resnets, info = cfg.MODEL.RESNETS, info_from_config(cfg)
    for key, only in (
        ("NUM_GROUPS", 1),
        ("WIDTH_PER_GROUP", 64),
        ("RES5_DILATION", 1),
        ("STEM_OUT_CHANNELS", info.spec.architecture.stem),
    ):
        if resnets[key] != only:
            raise InputError(
                f"MODEL.RESNETS.{key}: expected {only} for {info.spec.arch}, got {resnets[key]}; set it to {only}"
            )
    if any(resnets.DEFORM_ON_PER_STAGE):
        raise InputError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE: expected no deformable convolution, got "
            f"{list(resnets.DEFORM_ON_PER_STAGE)}; leave it at its default"
        )
    return NortonResNetBackbone(info, resnets.NORM, tuple(resnets.OUT_FEATURES), cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_norton_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The compressed ResNet with Detectron2's FPN (keys MODEL.FPN.*), levels p2 to p6."""
    bottom_up = build_norton_resnet_backbone(cfg, input_shape)
    if not cfg.MODEL.FPN.IN_FEATURES:
        raise InputError(
            f"MODEL.FPN.IN_FEATURES: expected some of {', '.join(FEATURE_STRIDES)}, got none; start from a config with "
            "an FPN: cfg.merge_from_file(FILE), such as Detectron2's faster_rcnn_R_50_FPN_3x.yaml"
        )
    if not set(cfg.MODEL.FPN.IN_FEATURES) <= set(bottom_up.out_features):
        raise InputError(
            f"MODEL.FPN.IN_FEATURES: expected some of OUT_FEATURES {list(bottom_up.out_features)}, got "
            f"{list(cfg.MODEL.FPN.IN_FEATURES)}; add them to MODEL.RESNETS.OUT_FEATURES"
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _norm(name: str, width: int) -> nn.Module:
    if name == "GN" and width % 32:
        raise InputError(f"MODEL.RESNETS.NORM: GN needs widths in multiples of 32, got {width}; use BN or FrozenBN")
    try:
        norm = get_norm(name, width)
    except KeyError:
        norm = None
    if norm is None:
        raise InputError(f"MODEL.RESNETS.NORM: expected FrozenBN, BN, SyncBN or GN, got {name!r}")
    return norm

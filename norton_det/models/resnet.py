"""A ResNet built from a CompressionSpec, with torchvision's parameter names.

A dense spec gives torchvision's network key for key. Where the spec has a rank, a 3x3 convolution is a ``CPConv2d``
(keys such as ``layer1.0.conv2.pointwise/vertical/horizontal.weight``).

Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. By default the stride of a bottleneck
sits in the 3x3 convolution (torchvision); ``stride_in_1x1`` puts it in conv1 (the original MSRA weights).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from .architecture import norm_name
from .layers import CPConv2d
from .preprocessing import TORCHVISION, Preprocessing
from .spec import CompressionSpec

Norm = Callable[[int], nn.Module]
FEATURE_STRIDES = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": 32}


class ResidualBlock(nn.Module):
    """Convolutions, each with its normalisation, and a residual connection: (N, I, H, W) -> (N, O, H/stride, W/stride).

    Args:
        convs: names and kernels of the convolutions, as in ``architecture.BLOCKS``.
        widths: channels of the input and after each convolution.
        ranks: CP rank of each convolution; ``None`` for a dense one.
        strides: of each convolution.
        project: whether the shortcut has a convolution.
        norm: makes the normalisation layer of a width.
    """

    def __init__(
        self,
        convs: Sequence[tuple[str, int]],
        widths: Sequence[int],
        ranks: Sequence[int | None],
        strides: Sequence[int],
        project: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.names = [name for name, _ in convs]
        sizes = zip(pairwise(widths), ranks, strides, strict=True)
        for (name, kernel), ((inputs, outputs), rank, stride) in zip(convs, sizes, strict=True):
            layer = (
                nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
                if rank is None
                else CPConv2d(inputs, outputs, kernel, rank, stride, kernel // 2, bias=False)
            )
            self.add_module(name, layer)
            self.add_module(norm_name(name), norm(outputs))
        self.relu = nn.ReLU(inplace=True)
        # the first block of a stage projects, whatever its widths: pruning can make them equal by chance
        self.downsample: nn.Sequential | None = None
        if project:
            conv = nn.Conv2d(widths[0], widths[-1], 1, math.prod(strides), bias=False)
            self.downsample = nn.Sequential(conv, norm(widths[-1]))

    def layers(self) -> list[tuple[str, nn.Module, nn.Module]]:
        """Name, convolution and normalisation, in order."""
        return [(name, getattr(self, name), getattr(self, norm_name(name))) for name in self.names]

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index, (_, conv, norm) in enumerate(self.layers()):
            out = norm(conv(self.relu(out) if index else out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class NortonResNet(nn.Module):
    """ResNet classifier whose widths and ranks come from ``spec``: (N, 3, H, W) -> (N, num_classes).

    Args:
        spec: ranks and ratios; ``CompressionSpec.dense()`` is torchvision's network.
        num_classes: outputs of the classifier; 0 leaves it out (a backbone).
        stride_in_1x1: of bottlenecks: stride in conv1 instead of conv2.
        norm: makes the normalisation layer of a width.

    ``preprocessing`` (torchvision's unless set) says what the weights expect at the input; checkpoints carry it.
    """

    def __init__(
        self,
        spec: CompressionSpec,
        num_classes: int = 1000,
        stride_in_1x1: bool = False,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.spec, self.num_classes, self.stride_in_1x1 = spec, num_classes, stride_in_1x1
        self.preprocessing: Preprocessing = TORCHVISION
        arch, widths = spec.architecture, spec.channels()
        self.conv1 = nn.Conv2d(3, widths[arch.stream(0)], 7, 2, 3, bias=False)
        self.bn1 = norm(widths[arch.stream(0)])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for stage, depth in enumerate(arch.depths, 1):
            blocks = [self._block(stage, block, widths, norm) for block in range(depth)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        if num_classes > 0:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(widths[arch.stream(4)], num_classes)
        self._initialise()

    def _block(self, stage: int, block: int, widths: Mapping[str, int], norm: Norm) -> ResidualBlock:
        arch = self.spec.architecture
        sites = [site for site in arch.sites_of(stage, block) if not site.projection]
        strided = arch.strided(stage, block, self.stride_in_1x1)
        strides = [2 if site.name == strided else 1 for site in sites]
        channels = [widths[sites[0].reads], *(widths[site.writes] for site in sites)]
        ranks = [self.spec.rank_of(site.name) for site in sites]
        return ResidualBlock(arch.convs, channels, ranks, strides, arch.projects(stage, block), norm)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, CPConv2d):  # as one convolution: the inner maps keep the variance
                nn.init.kaiming_normal_(module.pointwise.weight, mode="fan_in", nonlinearity="relu")
                nn.init.normal_(module.vertical.weight, std=(1 / module.kernel_size[0]) ** 0.5)
                nn.init.normal_(module.horizontal.weight, std=(1 / (module.kernel_size[1] * module.rank)) ** 0.5)

    @property
    def feature_channels(self) -> dict[str, int]:
        """Channels of each feature map, by Detectron2's names."""
        widths = self.spec.widths()
        return dict(zip(FEATURE_STRIDES, (widths.stem, *widths.stages), strict=True))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by name: stem and res2 at stride 4, res3 at 8, res4 at 16, res5 at 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = {"stem": x}
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            features[f"res{stage + 1}"] = x
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes) from the last feature map (N, C, H, W)."""
        return self.fc(self.avgpool(features).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)["res5"]
        return x if self.num_classes == 0 else self.classify(x)

"""A bottleneck ResNet built from a CompressionSpec, with torchvision's parameter names.

A dense spec gives torchvision's network key for key. Where the spec has a rank, ``layerS.B.conv2`` is a
``CPConv2d`` (keys ``conv2.pointwise/vertical/horizontal.weight``).

Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. By default the stride sits in
the 3x3 convolution (torchvision); ``stride_in_1x1`` puts it in conv1 (the original MSRA weights).
"""

from collections.abc import Callable

from torch import Tensor, nn

from .layers import CPConv2d
from .preprocessing import TORCHVISION, Preprocessing
from .spec import CompressionSpec

Norm = Callable[[int], nn.Module]
FEATURE_STRIDES = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": 32}


class Bottleneck(nn.Module):
    """1x1 -> 3x3 -> 1x1 with a residual connection: (N, I, H, W) -> (N, O, H/stride, W/stride)."""

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        rank: int | None,
        stride: int,
        project: bool,
        stride_in_1x1: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        stride_1, stride_2 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, stride_1, bias=False)
        self.bn1 = norm(width)
        self.conv2: nn.Module = (
            nn.Conv2d(width, width, 3, stride_2, 1, bias=False)
            if rank is None
            else CPConv2d(width, width, 3, rank, stride_2, 1, bias=False)
        )
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        # the first block of a stage projects, whatever its widths: pruning can make them equal by chance
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)) if project else None
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class NortonResNet(nn.Module):
    """ResNet classifier whose widths and ranks come from ``spec``: (N, 3, H, W) -> (N, num_classes).

    Args:
        spec: ranks and ratios; ``CompressionSpec.dense()`` is torchvision's network.
        num_classes: outputs of the classifier; 0 leaves it out (a backbone).
        stride_in_1x1: stride in conv1 instead of conv2.
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
        widths = spec.widths()
        self.conv1 = nn.Conv2d(3, widths.stem, 7, 2, 3, bias=False)
        self.bn1 = norm(widths.stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        ranks, inputs = iter(spec.ranks), widths.stem
        for stage, (outputs, inner) in enumerate(zip(widths.stages, widths.blocks, strict=True)):
            blocks = []
            for index, width in enumerate(inner):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Bottleneck(inputs, width, outputs, next(ranks), stride, index == 0, stride_in_1x1, norm))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        if num_classes > 0:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(inputs, num_classes)
        self._initialise()

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

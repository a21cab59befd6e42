"""Modules that compute as those of NORTON's release do, under its names."""

import torch
from torch import nn

from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec


class ReleaseConv(nn.Module):
    """The release's data flow: parts of all filters for the first component, then for the second, and so on."""

    def __init__(self, inputs: int, filters: int, rank: int, stride: int) -> None:
        super().__init__()
        parts = rank * filters
        self.filters, self.rank = filters, rank
        self.feature = nn.Sequential()
        self.feature.add_module("pointwise", nn.Conv2d(inputs, parts, 1, bias=False))
        self.feature.add_module(
            "vertical", nn.Conv2d(parts, parts, (3, 1), (stride, 1), (1, 0), groups=parts, bias=False)
        )
        self.feature.add_module(
            "horizontal", nn.Conv2d(parts, parts, (1, 3), (1, stride), (0, 1), groups=parts, bias=False)
        )

    def forward(self, x):
        return sum(self.feature(x).split(self.filters, dim=1))


def release_network(rank: int, spec: CompressionSpec, classes: int = 7) -> NortonResNet:
    """A ResNet of the widths of ``spec`` whose 3x3 convolutions are the release's; statistics are not the identity."""
    torch.manual_seed(2)
    model = NortonResNet(CompressionSpec(spec.ratios, None), classes)
    for stage in range(1, 5):
        for block in model.get_submodule(f"layer{stage}"):
            conv = block.conv2
            block.conv2 = ReleaseConv(conv.in_channels, conv.out_channels, rank, conv.stride[0])
    return randomise(model)


def randomise(model: nn.Module) -> nn.Module:
    """Statistics and weights that no two layers share, so that a swapped tensor shows; in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(3)
        elif tensor.ndim == 1:
            low, high = (0.5, 1.5) if name.endswith(("weight", "running_var")) else (-0.2, 0.2)
            tensor.uniform_(low, high, generator=generator)
    return model.eval()

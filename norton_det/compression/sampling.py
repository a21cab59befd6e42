"""What a convolution reads at sampled positions of its output, as rows of a matrix.

Legend: ``N`` images, ``C`` channels, ``K = Kh*Kw``, ``rows`` positions. Positions are (3, rows): image, row, column.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers import CPConv2d


def output_size(maps: Tensor, conv: nn.Conv2d | CPConv2d) -> tuple[int, int]:
    """Height and width of what a convolution makes of maps (N, C, H, W)."""
    assert not isinstance(conv.padding, str)  # "same" is not what these networks have
    sizes = zip(maps.shape[2:], conv.padding, conv.kernel_size, conv.stride, strict=True)
    height, width = ((size + 2 * pad - kernel) // stride + 1 for size, pad, kernel, stride in sizes)
    return height, width


def draw_positions(maps: Tensor, conv: nn.Conv2d | CPConv2d, count: int, generator: torch.Generator) -> Tensor:
    """Positions (3, rows) of the output of a convolution of maps (N, C, H, W): ``count``, or all if there are fewer."""
    height, width = output_size(maps, conv)
    at = torch.randperm(len(maps) * height * width, generator=generator)[:count].to(maps.device)
    return torch.stack([at // (height * width), at // width % height, at % width])


def patches(maps: Tensor, conv: nn.Conv2d | CPConv2d, positions: Tensor) -> Tensor:
    """What a convolution of maps (N, C, H, W) reads at positions of its output: (rows, K*C), kernel-major."""
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    assert not isinstance(padding, str)
    padded = F.pad(maps, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    image, y, x = positions
    parts = [
        padded[image, y * stride[0] + dy, x * stride[1] + dx] for dy in range(kernel[0]) for dx in range(kernel[1])
    ]
    return torch.cat(parts, dim=1)

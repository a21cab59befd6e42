"""Which positions of feature maps and which crops of images are looked at, and what stands at those positions.

Legend: ``N`` images, ``C`` channels, ``K = Kh*Kw``, ``S`` side of a crop, ``rows`` positions. Positions are (3, rows):
image, row, column.
"""

from collections.abc import Sequence

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


def draw_positions(grid: tuple[int, int, int], count: int, generator: torch.Generator) -> Tensor:
    """Different positions (3, rows) of maps, anywhere in all images together.

    Args:
        grid: (N, H, W) of the maps.
        count: rows; all positions if there are fewer.
        generator: on the CPU; so are the positions.
    """
    images, height, width = grid
    index = torch.randperm(images * height * width, generator=generator)[:count]
    return _from_index(index // (height * width), index % (height * width), width)


def draw_positions_evenly(grid: tuple[int, int, int], per_image: int, generator: torch.Generator) -> Tensor:
    """Different positions (3, rows) of maps, equally many in every image.

    Args:
        grid: (N, H, W) of the maps.
        per_image: rows of each image; all its positions if there are fewer.
        generator: on the CPU; so are the positions.
    """
    images, height, width = grid
    index = torch.rand(images, height * width, generator=generator).topk(min(per_image, height * width)).indices
    return _from_index(torch.arange(images)[:, None].expand_as(index), index, width)


def _from_index(image: Tensor, index: Tensor, width: int) -> Tensor:
    """Positions (3, rows) from images and row-major indices in their maps, of equal shape."""
    return torch.stack([image, index // width, index % width]).flatten(1)


def rows_of(maps: Tensor, positions: Tensor) -> Tensor:
    """Values (rows, C) of maps (N, C, H, W)."""
    image, y, x = positions
    return maps.permute(0, 2, 3, 1)[image, y, x]


def patches(maps: Tensor, conv: nn.Conv2d | CPConv2d, positions: Tensor) -> Tensor:
    """What a convolution of maps (N, C, H, W) reads at positions of its output: (rows, K*C), kernel-major."""
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    assert not isinstance(padding, str)
    padded = F.pad(maps, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else maps
    image, y, x = positions
    shifts = [(dy, dx) for dy in range(kernel[0]) for dx in range(kernel[1])]
    offsets = [torch.stack([image, y * stride[0] + dy, x * stride[1] + dx]) for dy, dx in shifts]
    return torch.cat([rows_of(padded, at) for at in offsets], dim=1)


def crop_side(images: Sequence[Tensor], largest: int) -> int:
    """The side of crops that fit in all images (..., H, W): a multiple of 32, at most ``largest``, at least 32."""
    return max(32, min(largest, *(side for image in images for side in image.shape[-2:])) // 32 * 32)


def random_crops(images: Sequence[Tensor], side: int, per_image: int = 1) -> list[Tensor]:
    """Random square crops of images (1, C, H, W): (1, C, S, S), ``per_image`` of each in turn, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    crops = []
    for image in images:
        for _ in range(per_image):
            top, left = (
                int(torch.randint(max(1, size - side + 1), (1,), generator=generator)) for size in image.shape[2:]
            )
            crops.append(image[:, :, top : top + side, left : left + side].contiguous())
    return crops

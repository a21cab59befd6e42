"""One rule for the size of a detector's input: the short side of a picture is brought to a length, unless the long one
would pass a limit. The stacks differ in their arithmetic alone, which is kept to the pixel.
"""

import math
from collections.abc import Callable

from ..utils.errors import InputError

LONGEST = 32768  # pixels of a side that may be asked for


class ThinPicture(InputError):
    """A picture so long that no pixel of its short side is left in the detector's input, or a classifier's would be
    far too large.

    Attributes:
        reason: a few words with its size.
    """

    def __init__(self, message: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason

    @classmethod
    def of(cls, height: int, width: int, expected: str) -> "ThinPicture":
        """What to raise for a picture (H, W)."""
        return cls(f"image: expected {expected}, got {width}x{height}; crop it", f"too thin: {width}x{height}")


def nearest_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """The size (h, w) that Detectron2's ``ResizeShortestEdge`` gives a picture (H, W): sides are rounded.

    Args:
        height, width: of the picture, in pixels.
        min_size: length of the short side.
        max_size: limit of the long side.
    """
    scale = min_size / min(height, width)
    sides = [float(min_size) if side == min(height, width) else scale * side for side in (height, width)]
    if max(sides) > max_size:
        shrink = max_size / max(sides)
        sides = [side * shrink for side in sides]
    return int(sides[0] + 0.5), int(sides[1] + 0.5)


def floor_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """The size (h, w) that torchvision's ``GeneralizedRCNNTransform`` gives a picture (H, W): sides are cut off.

    Args:
        height, width: of the picture, in pixels.
        min_size: length of the short side.
        max_size: limit of the long side.
    """
    scale = resize_scale(height, width, min_size, max_size)
    return math.floor(height * scale), math.floor(width * scale)


def resize_scale(height: int, width: int, min_size: int, max_size: int) -> float:
    """The factor that brings the short side of a picture (H, W) to ``min_size`` and the long one to at most
    ``max_size``."""
    return min(min_size / min(height, width), max_size / max(height, width))


def input_size(
    height: int,
    width: int,
    min_size: int,
    max_size: int,
    rounding: Callable[[int, int, int, int], tuple[int, int]] = nearest_size,
) -> tuple[int, int]:
    """The size (h, w) in pixels of a detector's input for a picture (H, W).

    Args:
        height, width: of the picture, in pixels.
        min_size: length of the short side; 0 leaves every picture at its size.
        max_size: limit of the long side.
        rounding: ``nearest_size`` (Detectron2) or ``floor_size`` (torchvision).

    Raises:
        ThinPicture: no pixel of the short side is left.
    """
    if min_size == 0:
        return height, width
    size = rounding(height, width, min_size, max_size)
    if not min(size):
        raise ThinPicture.of(height, width, f"a short side that is left at a long one of {max_size}")
    return size


def is_size(min_size: object, max_size: object) -> bool:
    """Whether these are sides that ``input_size`` takes: whole numbers, 0 <= min_size <= max_size <= 32768."""
    return type(min_size) is int and type(max_size) is int and 0 <= min_size <= max_size <= LONGEST and max_size > 0

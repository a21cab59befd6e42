"""How a ResNet is compressed, beside its spec: the settings of ``compress`` and of those that call it."""

from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from ..models.preprocessing import Preprocessing
from ..utils.errors import InputError
from .calibration import Calibration
from .criteria import DataCriterion, get_criterion


class CompressionOptions(TypedDict, total=False):
    """What ``compress``, ``compress_detector`` and ``compress_detector_state`` take by keyword; see ``compress``."""

    criterion: str | None
    seed: int
    starts: int | None
    preprocessing: Preprocessing | None
    stride_in_1x1: bool | None
    progress: bool


@dataclass(frozen=True)
class CompressionSettings:
    """The keyword arguments of ``compress``, checked.

    Attributes:
        criterion: how filters are scored; by default ``css`` with calibration, else ``pabs``: see ``scored_by``.
        seed: of the random starts of the decomposition and of random criteria.
        starts: initial guesses per filter of the decomposition; by default more for higher ranks.
        preprocessing, stride_in_1x1: what the weights expect; by default as the network says.
        progress: whether progress bars are shown.
        calibration: what the compressed network is fitted on.
        input_size: (3, H, W) at which MACs are counted.

    Raises:
        InputError: an unknown criterion, one that needs calibration images without them, or a seed out of range.
    """

    criterion: str | None = None
    seed: int = 0
    starts: int | None = None
    preprocessing: Preprocessing | None = None
    stride_in_1x1: bool | None = None
    progress: bool = False
    calibration: Calibration | None = None
    input_size: tuple[int, int, int] = (3, 224, 224)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}; choose one of them")
        if isinstance(get_criterion(self.scored_by), DataCriterion) and self.calibration is None:
            raise InputError(f"criterion: {self.scored_by} needs calibration images, got none; give some, or use pabs")

    @property
    def scored_by(self) -> str:
        """The name of the criterion that is used."""
        return self.criterion or ("pabs" if self.calibration is None else "css")


def as_calibration(images: Tensor | Calibration | None) -> Calibration | None:
    """A calibration as given, or with all defaults on images (N, 3, H, W).

    Raises:
        InputError: not such images.
    """
    return images if images is None or isinstance(images, Calibration) else Calibration(images)

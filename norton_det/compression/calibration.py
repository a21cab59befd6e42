"""What a calibration is: unlabelled images, switches, and which positions of feature maps are looked at.

A few hundred unlabelled images tell which channels can be spared (``channel_statistics``), and to what the layers that
are left have to be fitted (``fit_resnet``). Labels are not needed, and nothing is trained.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.device import check_device
from ..utils.errors import InputError
from .fitter import FitSettings
from .sampling import draw_positions_evenly


@dataclass(frozen=True)
class Calibration:
    """Unlabelled images and what is done with them.

    Attributes:
        images: (N, 3, H, W), preprocessed as the weights expect.
        batch_norm, compensate, decomposition: the switches, see ``fit_resnet``. ``compensate`` and ``"output"`` need
            ``batch_norm``.
        rows: positions of each layer that are looked at, drawn evenly from all images.
        ridge: how strongly solutions are drawn to the dense network's weights, as a share of the mean variance of
            the inputs.
        sweeps: of the factors of each CP layer; by default 3 for rank 1 and 1 above, where each costs ``rank`` times
            as much and less is to be gained.
        batch_size: images at a time.
        seed: of the drawn positions.
        device: where it is computed; results come back to the CPU.
    """

    images: Tensor
    batch_norm: bool = True
    compensate: bool = True
    decomposition: str = "output"
    rows: int = 16384
    ridge: float = 1e-2
    sweeps: int | None = None
    batch_size: int = 32
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        images = self.images
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not len(images):
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"calibration: images: expected (N, 3, H, W) with N > 0, got {got}; stack the images")
        if not images.is_floating_point():
            raise InputError(f"calibration: images: expected floats, preprocessed, got {images.dtype}; normalise them")
        if min(images.shape[2:]) < 32:
            raise InputError(f"calibration: images: expected at least 32 x 32, got {tuple(images.shape[2:])}; enlarge")
        if not images.isfinite().all():
            raise InputError("calibration: images: expected finite pixels, got NaN or infinity; remove that image")
        if self.decomposition not in ("output", "weight"):
            raise InputError(f"decomposition: expected output or weight, got {self.decomposition!r}; use one of them")
        if not self.batch_norm and (self.compensate or self.decomposition == "output"):
            raise InputError("calibration: a fit sets batch normalisation too; leave batch_norm on, or turn both off")
        if min(self.rows, 1 if self.sweeps is None else self.sweeps, self.batch_size) < 1 or not self.ridge > 0:
            raise InputError("calibration: expected rows, sweeps, batch_size >= 1 and ridge > 0; use the defaults")
        check_device(self.device)

    @property
    def fits(self) -> bool:
        """Whether weights change, not only statistics."""
        return self.compensate or self.decomposition == "output"

    @property
    def fit_settings(self) -> FitSettings:
        """How its layers are fitted."""
        sweeps = (3, 1) if self.sweeps is None else (self.sweeps, self.sweeps)
        return FitSettings(self.ridge, sweeps=sweeps, kernel=self.decomposition == "output")

    def sampler(self) -> Callable[[Tensor], Tensor]:
        """Draws positions of maps (n, C, H, W): (3, rows) of image, row and column; equally many in every image."""
        generator = torch.Generator().manual_seed(self.seed)
        per_image = max(1, self.rows // len(self.images))

        def draw(maps: Tensor) -> Tensor:
            count, _, height, width = maps.shape
            return draw_positions_evenly((count, height, width), per_image, generator).to(maps.device)

        return draw

    def batches(self) -> Iterator[Tensor]:
        """Images (<= batch_size, 3, H, W) on the device, channels last."""
        return map(self.place, self.images.split(self.batch_size))

    def place(self, images: Tensor) -> Tensor:
        """A batch of the images on the device, channels last."""
        return images.float().to(self.device).contiguous(memory_format=torch.channels_last)

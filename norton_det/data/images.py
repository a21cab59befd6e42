"""Images of a folder: found, read, resized and cropped; random samples of them for calibration.

What cannot be read is skipped and named, never guessed. Images are resized so that the short side is ``resize``, then
cropped to ``size`` x ``size`` in the middle, as torchvision's classifiers are evaluated (bilinear, antialiased).
torchvision is imported by the function that needs it, not with the module.
"""

import contextlib
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..models.input_size import LONGEST, ThinPicture
from ..models.preprocessing import Preprocessing
from ..utils.errors import InputError
from .decode import read_image, short_side

Input = TypeVar("Input")
File = TypeVar("File", bound=str | Path)
WRITTEN = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
SUFFIXES = WRITTEN | {".jpe", ".jfif", ".avif", ".jp2", ".pgm", ".pnm"}
GAP = 6  # pixels between pictures side by side
_MARGIN = 224 / 256  # of a crop in its resized image


@dataclass(frozen=True)
class ImageSize:
    """How images are brought to one size.

    Attributes:
        size: height and width of the crop.
        resize: length of the short side before it.
    """

    size: int
    resize: int

    def __post_init__(self) -> None:
        if self.size < 32 or self.resize < self.size:
            raise InputError(f"image size: expected 32 <= size <= resize, got {self.size} and {self.resize}")

    def __str__(self) -> str:
        return f"resize {self.resize}, crop {self.size}"


def choose_size(images: Sequence[Path], size: int | None = None, resize: int | None = None) -> ImageSize:
    """The size asked for; by default crops of 224, or what the images have if they are smaller.

    The crop is 0.875 of the resized image unless both are given.
    """
    if size is None and resize is None:
        sides = []
        for path in random.Random(0).sample(list(images), min(32, len(images))):
            with contextlib.suppress(InputError):
                sides.append(short_side(path))
        resize = min(256, statistics.median_high(sides)) if sides else 256
    if size is None:
        assert resize is not None
        size = round(resize * _MARGIN)
    return ImageSize(size, resize if resize is not None else round(size / _MARGIN))


def find_images(folder: str | Path) -> list[Path]:
    """All image files below a folder, sorted.

    Raises:
        InputError: no such folder, or no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of images, found none; check the path")
    files = sorted(path for path in root.rglob("*") if is_picture(path))
    if not files:
        raise InputError(f"{root}: expected images ({', '.join(sorted(SUFFIXES))}), found none; name another folder")
    return files


def is_picture(path: Path) -> bool:
    """Whether a file is named as a picture; what macOS keeps beside one (``._a.jpg``) is none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._") and path.is_file()


def load_images(
    folder: str | Path,
    preprocessing: Preprocessing,
    *,
    count: int = 512,
    size: int | None = None,
    resize: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Tensor, dict[Path, str], ImageSize]:
    """A random sample of the images below a folder, for calibration; labels are not looked at.

    Args:
        folder: searched with its sub-folders.
        preprocessing: what the weights expect.
        count: how many images at most.
        size, resize: see ``choose_size``.
        seed: of the sample.
        progress: show a bar.

    Returns:
        images (N, 3, size, size), files that could not be used with the reasons, the size.

    Raises:
        InputError: no such folder, or none of its images can be read.
    """
    files = _shuffled(folder, count, seed, 512)
    shape = choose_size(files, size, resize)
    transform = make_transform(preprocessing, shape)
    images, broken = read_sample(folder, files, transform, count, progress=progress)
    return torch.stack(images), broken, shape


def load_pictures(
    folder: str | Path,
    convert: Callable[[np.ndarray], Input],
    *,
    count: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> tuple[list[Input], dict[Path, str]]:
    """A random sample of the images below a folder as a detector or an engine takes them, for calibration.

    Args:
        folder: searched with its sub-folders.
        convert: from a picture (H, W, 3), RGB, uint8, to the input.
        count: how many images at most.
        seed: of the sample.
        progress: show a bar.

    Returns:
        The inputs, and the files that could not be used with the reasons.

    Raises:
        InputError: no such folder, or none of its images can be read.
    """
    return read_sample(folder, _shuffled(folder, count, seed, 64), convert, count, progress=progress)


def _shuffled(folder: str | Path, count: int, seed: int, enough: int) -> list[Path]:
    """All images below a folder in random order, once ``count`` is a number to draw."""
    if count < 1:
        raise InputError(f"calibration images: expected 1 or more, got {count}; {enough} are enough")
    files = find_images(folder)
    random.Random(seed).shuffle(files)
    return files


def read_sample(
    what: object,
    files: Sequence[File],
    convert: Callable[[np.ndarray], Input],
    count: int,
    *,
    read: Callable[[File], np.ndarray] = read_image,
    progress: bool = False,
) -> tuple[list[Input], dict[File, str]]:
    """The first ``count`` files that can be read, converted, and those that could not, with the reasons.

    Args:
        what: the folder or data set that they are of, for the error.
        files: to be read in this order.
        convert: from a picture (H, W, 3), RGB, uint8, to the input.
        count: how many at most.
        read: from a file to the picture; by default ``read_image``.
        progress: show a bar.

    Raises:
        InputError: none can be read.
    """
    images: list[Input] = []
    broken: dict[File, str] = {}
    with tqdm(total=min(count, len(files)), desc="images", unit="image", disable=not progress) as bar:
        for path in files:
            try:
                images.append(convert(read(path)))
                bar.update()
            except InputError as error:
                broken[path] = error.reason if isinstance(error, ThinPicture) else "cannot be read"
            if len(images) == count:
                break
    if not images:
        raise InputError(
            f"{what}: expected images, got {len(broken)} that cannot be read (first: {Path(next(iter(broken))).name}); "
            "name others"
        )
    return images, broken


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture (H, W, 3), uint8, as (height, width, 3): bicubic, with Pillow."""
    return np.array(Image.fromarray(image).resize((width, height)))


def make_transform(
    preprocessing: Preprocessing, shape: ImageSize, augment: bool = False, least_area: float = 0.35
) -> Callable[[np.ndarray], Tensor]:
    """A function from a picture (H, W, 3), RGB, uint8, to a classifier's input (3, size, size); it raises
    ``ThinPicture`` for one that would be longer than 32768 pixels with its short side resized.

    Args:
        preprocessing: colour order, mean and std.
        shape: size of the crop, and of the image around it.
        augment: random crops of at least ``least_area`` of the image, and horizontal flips, as in training.
        least_area: share of the image.
    """
    from torchvision.transforms import v2

    if augment:
        steps: list[Any] = [v2.RandomResizedCrop(shape.size, (least_area, 1.0)), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.Resize(shape.resize), v2.CenterCrop(shape.size)]
    picture = v2.Compose([*steps, v2.PILToTensor()])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    flip = preprocessing.color == "BGR"

    def transform(image: np.ndarray) -> Tensor:
        if max(image.shape[:2]) * shape.resize > LONGEST * min(image.shape[:2]):
            raise ThinPicture.of(
                image.shape[0], image.shape[1], f"at most {LONGEST // shape.resize} times as long as it is wide"
            )
        pixels = picture(Image.fromarray(image)).float()
        return ((pixels.flip(0) if flip else pixels) - mean) / std

    return transform


def beside(pictures: Sequence[np.ndarray], shade: int = 0) -> np.ndarray:
    """Pictures (H, W, 3), uint8 arrays of one height, in a row with gaps of this shade between them."""
    parts: list[np.ndarray] = []
    for picture in pictures:
        parts += [picture, np.full((picture.shape[0], GAP, 3), shade, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)

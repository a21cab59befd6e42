"""Folders of images: unlabelled ones for calibration, and ImageNet-style folders with one sub-folder per class.

What cannot be read is skipped and named, never guessed. Images are resized so that the short side is ``resize``, then
cropped to ``size`` x ``size`` in the middle, as torchvision's classifiers are evaluated (bilinear, antialiased).
Pillow and torchvision are imported by the functions, not with the module.
"""

import logging
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import InputError, first_line
from ..files import require_file
from ..preprocessing import Preprocessing

logger = logging.getLogger(__name__)
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
WNIDS = Path(__file__).with_name("imagenet_wnids.txt")  # the 1000 classes of ILSVRC 2012, in the order of their heads
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
        from PIL import Image

        sides = []
        for path in random.Random(0).sample(list(images), min(32, len(images))):
            try:
                with Image.open(path) as image:
                    sides.append(min(image.size))
            except OSError:
                continue
        resize = min(256, round(statistics.median(sides))) if sides else 256
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
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise InputError(f"{root}: expected images ({', '.join(sorted(SUFFIXES))}), found none; name another folder")
    return found


def load_images(
    folder: str | Path,
    preprocessing: Preprocessing,
    *,
    count: int = 512,
    size: int | None = None,
    resize: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Tensor, list[Path], ImageSize]:
    """A random sample of the images below a folder, for calibration; labels are not looked at.

    Args:
        folder: searched with its sub-folders.
        preprocessing: what the weights expect.
        count: how many images at most.
        size, resize: see ``choose_size``.
        seed: of the sample.
        progress: show a bar.

    Returns:
        images (N, 3, size, size), files that could not be read, the size.

    Raises:
        InputError: no such folder, or none of its images can be read.
    """
    if count < 1:
        raise InputError(f"calibration images: expected 1 or more, got {count}; 512 is enough")
    found = find_images(folder)
    random.Random(seed).shuffle(found)
    shape = choose_size(found, size, resize)
    transform = make_transform(preprocessing, shape)
    images, broken = _read_sample(folder, found, transform, count, progress)
    return torch.stack(images), broken, shape


def load_pictures(
    folder: str | Path, convert: Callable[[Any], Any], *, count: int = 64, seed: int = 0, progress: bool = False
) -> tuple[list[Any], list[Path]]:
    """A random sample of the images below a folder as a detector takes them, for calibration.

    Args:
        folder: searched with its sub-folders.
        convert: from a Pillow image in RGB to what the detector takes.
        count: how many images at most.
        seed: of the sample.
        progress: show a bar.

    Returns:
        The inputs, and the files that could not be read.

    Raises:
        InputError: no such folder, or none of its images can be read.
    """
    if count < 1:
        raise InputError(f"calibration images: expected 1 or more, got {count}; 64 are enough")
    found = find_images(folder)
    random.Random(seed).shuffle(found)
    return _read_sample(folder, found, convert, count, progress)


def _read_sample(
    folder: str | Path, found: Sequence[Path], convert: Callable[[Any], Any], count: int, progress: bool
) -> tuple[list[Any], list[Path]]:
    """The first ``count`` files that can be read, converted, and those that could not."""
    images: list[Any] = []
    broken: list[Path] = []
    with tqdm(total=min(count, len(found)), desc="images", unit="image", disable=not progress) as bar:
        for path in found:
            try:
                images.append(convert(read_image(path)))
                bar.update()
            except InputError:
                broken.append(path)
            if len(images) == count:
                break
    if not images:
        raise InputError(
            f"{folder}: expected images, got {len(broken)} that cannot be read (first: {broken[0].name}); "
            "name another folder"
        )
    return images, broken


def read_image(path: Path) -> Any:
    """A Pillow image in RGB.

    Raises:
        InputError: it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path}: expected an image, got a damaged or other file ({first_line(error, 80)}); remove it"
        ) from None


def make_transform(
    preprocessing: Preprocessing, shape: ImageSize, augment: bool = False, least_area: float = 0.35
) -> Callable[[Any], Tensor]:
    """A function from a Pillow image to the network's input (3, size, size).

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

    def transform(image: Any) -> Tensor:
        pixels = picture(image).float()
        return ((pixels.flip(0) if flip else pixels) - mean) / std

    return transform


class ClassFolder(Dataset):
    """An ImageNet-style folder: one sub-folder per class. Gives (image (3, size, size), class index of the head).

    Attributes:
        files, labels: all images and their indices in the head.
        shape: the size of images.
        classes: names of the sub-folders and their indices in the head.
    """

    def __init__(
        self,
        folder: str | Path,
        num_classes: int,
        preprocessing: Preprocessing,
        *,
        size: int | None = None,
        resize: int | None = None,
        augment: bool = False,
        classes: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            folder: with one folder per class.
            num_classes: outputs of the head.
            preprocessing: what the weights expect.
            size, resize: see ``choose_size``.
            augment: random crops and flips.
            classes: the head's classes in order; by default ILSVRC 2012's wnids for a head of 1000, else the
                sorted names of the folders.

        Raises:
            InputError: no folder, no images, or classes that do not match the head.
        """
        root = Path(folder)
        if not root.is_dir():
            raise InputError(f"{root}: expected a folder with one folder per class, found none; check the path")
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        self.classes = match_classes(root, names, num_classes, classes)
        self.files: list[Path] = []
        self.labels: list[int] = []
        for name, index in self.classes.items():
            inside = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in SUFFIXES)
            if not inside:
                logger.warning("%s: expected images of this class, found none", root / name)
            self.files += inside
            self.labels += [index] * len(inside)
        if not self.files:
            raise InputError(f"{root}: expected images in its class folders, found none; check the path")
        self.shape = choose_size(self.files, size, resize)
        self.transform = make_transform(preprocessing, self.shape, augment)
        self.broken: set[int] = set()  # places of files that could not be read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image and label; a file that cannot be read gives zeros and the label -1, which no count or loss uses."""
        try:
            return self.transform(read_image(self.files[index])), self.labels[index]
        except InputError:
            if index not in self.broken:
                self.broken.add(index)
                logger.warning("skipped, cannot be read: %s", self.files[index])
            return torch.zeros(3, self.shape.size, self.shape.size), -1


def read_classes(path: str | Path) -> list[str]:
    """The head's classes in order, from a text file with one folder name a line.

    Raises:
        InputError: no such file, or not a text.
    """
    try:
        text = require_file(path, "a list of classes").read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected text, one folder name a line, got another kind of file") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def match_classes(
    root: Path, names: Sequence[str], num_classes: int, classes: Sequence[str] | None = None
) -> dict[str, int]:
    """Index in the head of each class folder.

    Raises:
        InputError: the folders and the head do not belong together.
    """
    if not names:
        raise InputError(f"{root}: expected one folder per class, found no folders; name the folder above the classes")
    if classes is None and num_classes == 1000:
        known = WNIDS.read_text(encoding="utf-8").split()
        if len(names) != 1000 or set(names) & set(known):
            classes = known
    if classes is not None:
        if len(classes) != num_classes:
            raise InputError(f"classes: expected {num_classes}, one for each output, got {len(classes)}; list all")
        indices = {name: index for index, name in enumerate(classes)}
        if unknown := [name for name in names if name not in indices]:
            raise InputError(
                f"{root}: expected folders named as the head's classes ({classes[0]}, ...), got {unknown[0]!r} and "
                f"{len(unknown) - 1} others; rename or remove them"
            )
        return {name: indices[name] for name in names}
    if len(names) != num_classes:
        raise InputError(
            f"{root}: expected {num_classes} class folders, one for each output of the head, got {len(names)}; "
            "use the data of these weights, or list the head's classes with --classes FILE"
        )
    return {name: index for index, name in enumerate(names)}

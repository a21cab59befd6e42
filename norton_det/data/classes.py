"""ImageNet-style folders, one sub-folder per class, and which output of the head each class is."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..models.input_size import ThinPicture
from ..models.preprocessing import Preprocessing
from ..utils.errors import InputError
from ..utils.files import require_file
from .decode import read_image
from .images import choose_size, is_picture, make_transform

logger = logging.getLogger(__name__)
WNIDS = Path(__file__).with_name("imagenet_wnids.txt")  # the 1000 classes of ILSVRC 2012, in the order of their heads


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
            inside = sorted(path for path in (root / name).rglob("*") if is_picture(path))
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
        except InputError as error:
            if index not in self.broken:
                self.broken.add(index)
                reason = error.reason if isinstance(error, ThinPicture) else "cannot be read"
                logger.warning("skipped, %s: %s", reason, self.files[index])
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

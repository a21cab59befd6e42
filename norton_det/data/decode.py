"""Where every picture is decoded: a file or its bytes -> pixels (H, W, 3), RGB, uint8.

Training, evaluation, calibration, the demo and the server read by it, so that a network sees the same pixels of a file
in all of them. What a file leaves open is settled here:

* Orientation: a picture is turned as its EXIF data say; annotations are of the turned picture, as in Detectron2.
* Depth: of samples of 16 bits the upper 8 are taken, in grey as in colour, and so of the 12 of a TIFF; 1 bit is black
  or white. Cameras and microscopes store 12 bits, and programs 8, in files of 16, which would come out black: a picture
  of 16 bits whose values are all below 4096 is one of 12, and below 256 one of 8; the first one of each is told. Signed
  numbers, those of 32 bits and floats have no known range and are refused.
* Colour: palettes, grey, CMYK and others are converted by Pillow; colour profiles are not applied.
* Transparency is left out: the colours that are stored beneath it are taken, as Detectron2 and torchvision do.
* Of several frames or pages the first is read.
"""

import io
import logging
import os
import sys
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ..utils.errors import InputError, first_line

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = tuple(_TURNS[number] for number in (5, 6, 7, 8))  # width and height change places
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
# Pillow takes the upper byte of samples in colour: of these the lower one
_SMALLER = (8, 12)  # bits that files of 16 may hold
_UNSIGNED_16 = ("PNG", "PPM")  # formats whose pixels Pillow may hold as 32-bit integers though they are of 16 bits

logger = logging.getLogger(__name__)
_told: set[int] = set()


class UnreadableImage(InputError):
    """A file that is no picture, a damaged one, or one of a kind that is not read.

    Attributes:
        reason: what the decoder said of it, one line.
    """

    def __init__(self, message: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason

    @classmethod
    def of(cls, name: object, error: Exception) -> "UnreadableImage":
        """What to raise for a decoder's error on the picture of that name."""
        reason = first_line(error, 160)
        return cls(f"{name}: expected an image, got a damaged or other file ({reason[:80]}); remove it", reason)


def read_image(
    source: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    formats: tuple[str, ...] | None = None,
    most_pixels: int | None = None,
) -> np.ndarray:
    """The pixels of a picture, as the module's description says.

    Args:
        source: its file, or the file's bytes.
        name: of the picture in errors; by default that of the file.
        formats: Pillow's names of those to try, such as ``("JPEG", "PNG")``; by default all.
        most_pixels: refuse larger pictures before they are decoded; by default Pillow's limit alone.

    Returns:
        (H, W, 3), RGB, uint8, contiguous.

    Raises:
        UnreadableImage: it cannot be decoded, or its pixels have no known range.
        InputError: more than ``most_pixels``.
    """
    if name is None:
        name = "image" if isinstance(source, bytes) else os.fspath(source)
    try:
        with _open(source, formats) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise InputError(f"{name}: expected at most {most_pixels} pixels, got {image.width}x{image.height}")
            deep = _lower_bytes(image) if image.mode in ("RGB", "RGBA") else None
            image.load()  # before its orientation is asked for: Pillow itself turns a TIFF
            turn = _turn(image)
            if deep is not None and np.asarray(image).max() < 16:  # all samples below 4096
                with _open(source, formats) as lower:
                    lower.tile = deep  # type: ignore[attr-defined]
                    values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(lower)
                image = Image.fromarray(_upper_bits(values[:, :, :3], 16, name))
            return _to_rgb(image, turn, name)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever their libraries do
        raise UnreadableImage.of(name, error) from None


def short_side(path: str | os.PathLike[str]) -> int:
    """The short side of a picture in pixels, read from the head of its file.

    Raises:
        UnreadableImage: the file has no such head.
    """
    try:
        with Image.open(path) as image:
            return min(image.size)
    except Exception as error:
        raise UnreadableImage.of(path, error) from None


def picture_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels of a picture as ``read_image`` gives it, read from the head of its file.

    Raises:
        UnreadableImage: the file has no such head.
    """
    try:
        with Image.open(path) as image:
            on_its_side = image.format != "TIFF" and _turn(image) in _ON_ITS_SIDE  # Pillow itself turns a TIFF
            return (image.height, image.width) if on_its_side else (image.width, image.height)
    except Exception as error:
        raise UnreadableImage.of(path, error) from None


def _open(source: str | os.PathLike[str] | bytes, formats: tuple[str, ...] | None) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


def _lower_bytes(image: Image.Image) -> list[Any] | None:
    """What has Pillow read the lower bytes of an opened picture of 16 bits in colour; ``None`` for others."""
    tiles = []
    for tile in getattr(image, "tile", ()):
        mode, *others = (tile.args,) if isinstance(tile.args, str) else tuple(tile.args or ("",))
        kind, _, order = str(mode).partition(";")
        if order not in _OTHER_BYTE:
            return None
        other = f"{kind};{_OTHER_BYTE[order]}"
        tiles.append(tile._replace(args=other if isinstance(tile.args, str) else (other, *others)))
    return tiles or None


def _to_rgb(image: Image.Image, turn: Image.Transpose | None, name: str) -> np.ndarray:
    """The pixels (H, W, 3) of a loaded picture, turned."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_upper_bits(np.asarray(image), _depth(image), name))
    image.info.pop("transparency", None)
    rgb = image.convert("RGB")
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How a picture has to be turned; ``None`` where it need not be, or its EXIF data are damaged."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever damaged EXIF data lead to; the pixels are whole
        return None


def _depth(image: Image.Image) -> int:
    """The bits, 9 to 16, of a grey picture's samples.

    Raises:
        ValueError: its pixels have no known range.
    """
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers")
    if image.mode == "I" and image.format not in _UNSIGNED_16:
        raise ValueError("pixels are signed or 32-bit integers")
    return int(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0])


def _upper_bits(values: np.ndarray, bits: int, name: str) -> np.ndarray:
    """The upper 8 of the bits that samples have, or of those that they hold, as uint8 of the same shape."""
    largest = int(values.max())
    held = next((smaller for smaller in _SMALLER if 0 < largest < 1 << smaller), bits) if bits == 16 else bits
    if held < bits and held not in _told:
        _told.add(held)
        logger.warning("%s: taken as a picture of %d bits, as no value of its 16 is larger; so are others", name, held)
    return (values >> (held - 8)).astype(np.uint8)

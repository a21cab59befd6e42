"""Where every picture is decoded: a file or its bytes -> pixels (H, W, 3), RGB, uint8.

Training, evaluation, calibration, the demo and the server read by it, so that a network sees the same pixels of a file
in all of them. What a file leaves open is settled here:

* Orientation: a picture is turned as its EXIF data say; annotations are of the turned picture, as in Detectron2.
* Depth: samples are scaled by the depth that the file declares, never by their values. Of 16 bits the upper 8 are
  taken, in grey as in colour, and so of the 12 of a TIFF; 1 bit is black or white. (A PNG of 12 significant bits has
  them at the top of its 16, as its standard asks.) Signed numbers, those of 32 bits and floats have no known range and
  are refused.
* Colour: palettes, grey, CMYK and others are converted by Pillow; colour profiles are not applied.
* Transparency is left out: the colours that are stored beneath it are taken, as Detectron2 and torchvision do.
* Of several frames or pages the first is read.
"""

import io
import os

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
_UNSIGNED_16 = ("PNG", "PPM")  # formats whose pixels Pillow may hold as 32-bit integers though they are of 16 bits


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
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise InputError(f"{name}: expected at most {most_pixels} pixels, got {image.width}x{image.height}")
            return _to_rgb(image)
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


def _to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels (H, W, 3) of an opened picture."""
    image.load()  # before its orientation is asked for: Pillow itself turns a TIFF
    turn = _turn(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_upper_bits(image))
    image.info.pop("transparency", None)
    rgb = image.convert("RGB")
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How a picture has to be turned; ``None`` where it need not be, or its EXIF data are damaged."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever damaged EXIF data lead to; the pixels are whole
        return None


def _upper_bits(image: Image.Image) -> np.ndarray:
    """The upper 8 bits (H, W), uint8, of a grey picture of 9 to 16 bits.

    Raises:
        ValueError: its pixels have no known range.
    """
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers")
    if image.mode == "I" and image.format not in _UNSIGNED_16:
        raise ValueError("pixels are signed or 32-bit integers")
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
    return (np.asarray(image) >> (bits - 8)).astype(np.uint8)

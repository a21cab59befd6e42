"""One generated picture: textured background, clutter, and figures that overlap with known visible regions.

Figures are laid from back to front. What an instance's mask holds is what can be seen of it; a keypoint behind a
figure in front has visibility 1, one outside the picture 0, any other 2 (COCO's meaning).

Legend: ``H, W`` height and width of the picture in pixels, ``K`` keypoints.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .figures import SHAPES, Figure, draw_person, draw_shape

CLASSES = ("person", *SHAPES)

_REFERENCE_SIDE = 192  # figure sizes below are for a picture whose shorter side is this long
_SHAPE_SIZES = (18, 90)
_PERSON_SIZES = (38, 120)
_SMALLEST = (14, 28)  # pixels, a shape and a person, whatever the scale: below that nothing can be told apart
_MIN_VISIBLE = 0.6  # share of a figure that stays visible; otherwise the next one is laid elsewhere
_MIN_PIXELS = 40
_CROWD_SHARE = 0.12  # of the pictures


@dataclass
class Instance:
    """A figure in a picture.

    Attributes:
        name: one of ``CLASSES``.
        mask: (H, W) bool, the visible region.
        keypoints: (K, 3) int, x, y (pixel indices) and visibility, for a person; otherwise None.
        is_crowd: a group whose members are not told apart.
    """

    name: str
    mask: np.ndarray
    keypoints: np.ndarray | None = None
    is_crowd: bool = False


def render_scene(
    rng: np.random.Generator, height: int, width: int, smallest: int = 0
) -> tuple[np.ndarray, list[Instance]]:
    """A picture with up to six instances, two at least unless there is no room for them.

    Args:
        rng: the only source of randomness.
        height, width: in pixels, 96 or more.
        smallest: least size of a shape in pixels, half of that of a person; crowds are left out when it is given.

    Returns:
        The picture (H, W, 3) uint8 BGR, and its instances from back to front.
    """
    scale = min(height, width) / _REFERENCE_SIDE
    image = _background(rng, height, width)
    _clutter(rng, image)
    image = image.astype(np.float32)
    count = int(rng.integers(2, 7))
    instances: list[Instance] = []
    whole: list[int] = []  # pixels of each instance when nothing hides it
    for name, figure, is_crowd in _figures(rng, count, scale, smallest):
        covered = figure.alpha >= 0.5
        pixels = int(np.count_nonzero(covered))
        for _ in range(25):
            corner = _position(rng, figure, height, width)
            target, source = _overlap(covered.shape, corner, height, width)
            cover = covered[source]
            uncovered: list[int] = [_visible(instance.mask, target, cover) for instance in instances]
            counts = zip([int(np.count_nonzero(cover)), *uncovered], [pixels, *whole], strict=True)
            if all(seen >= max(_MIN_PIXELS, _MIN_VISIBLE * size) for seen, size in counts):
                image[target] = image[target] * (1 - figure.alpha[source][..., None]) + figure.color[source]
                _lay(instances, name, figure, is_crowd, corner, (height, width))
                whole.append(pixels)
                break
    image += rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(2, 6))
    return np.rint(image.clip(0, 255, out=image)).astype(np.uint8), instances


def _figures(rng: np.random.Generator, count: int, scale: float, least: int) -> list[tuple[str, Figure, bool]]:
    """Name, drawing and crowd flag of ``count`` figures, the large ones first so that they lie behind."""
    figures: list[tuple[str, Figure, bool]] = []
    sizes: list[float] = []
    if rng.uniform() < _CROWD_SHARE and not least:
        name = CLASSES[rng.integers(len(CLASSES))]
        figures.append((name, _crowd(rng, name, scale), True))
        sizes.append(np.inf)
    while len(figures) < count:
        name = "person" if rng.uniform() < 0.4 else SHAPES[rng.integers(len(SHAPES))]
        low, high = _PERSON_SIZES if name == "person" else _SHAPE_SIZES
        smallest = max(low * scale, _SMALLEST[name == "person"], least * (2 if name == "person" else 1))
        size = float(np.exp(rng.uniform(np.log(smallest), np.log(max(high * scale, smallest)))))
        figure = draw_person(rng, size) if name == "person" else draw_shape(rng, name, size)
        figures.append((name, figure, False))
        sizes.append(size)
    return [figures[index] for index in np.argsort(sizes)[::-1]]


def _crowd(rng: np.random.Generator, name: str, scale: float) -> Figure:
    """Six to twelve small figures of one class, side by side and overlapping, as one drawing."""
    count = int(rng.integers(6, 13))
    size = scale * float(rng.uniform(26, 38) if name == "person" else rng.uniform(12, 20))
    height, width = int(2.6 * size), int(size * (0.45 * count + 1.6))
    color, alpha = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    for index in range(count):
        figure = draw_person(rng, size) if name == "person" else draw_shape(rng, name, size)
        left = round(index / (count - 1) * (width - figure.alpha.shape[1]))
        top = round(rng.uniform(0, max(0, height - figure.alpha.shape[0])))
        target, source = _overlap(figure.alpha.shape, (left, top), height, width)
        cover = figure.alpha[source]
        color[target] = color[target] * (1 - cover[..., None]) + figure.color[source]
        alpha[target] = alpha[target] * (1 - cover) + cover
    return Figure(color, alpha)


def _position(rng: np.random.Generator, figure: Figure, height: int, width: int) -> tuple[int, int]:
    """Left and top of the figure's canvas: mostly inside the picture, now and then cut by its border."""
    slack = 0.25 if rng.uniform() < 0.2 else 0.0
    rows, columns = figure.alpha.shape
    left = rng.uniform(-slack * columns, max(width - (1 - slack) * columns, 1 - slack * columns))
    top = rng.uniform(-slack * rows, max(height - (1 - slack) * rows, 1 - slack * rows))
    return round(left), round(top)


def _overlap(
    shape: tuple[int, ...], corner: tuple[int, int], height: int, width: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a canvas of ``shape`` with its (left, top) ``corner`` meets a picture: area in it, area on the canvas."""
    left, top = corner
    x0, x1 = max(left, 0), max(min(left + shape[1], width), 0)
    y0, y1 = max(top, 0), max(min(top + shape[0], height), 0)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _visible(mask: np.ndarray, target: tuple[slice, slice], cover: np.ndarray) -> int:
    """Pixels of ``mask`` (H, W) that stay visible when ``cover`` is laid over its area ``target``."""
    return int(np.count_nonzero(mask)) - int(np.count_nonzero(mask[target] & cover))


def _lay(
    instances: list[Instance],
    name: str,
    figure: Figure,
    is_crowd: bool,
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Add a figure in front of ``instances``, and take it out of their masks and visible keypoints."""
    mask = np.zeros(size, bool)
    target, source = _overlap(figure.alpha.shape, corner, *size)
    mask[target] = figure.alpha[source] >= 0.5
    for instance in instances:
        instance.mask &= ~mask
        if instance.keypoints is not None:
            x, y, visibility = instance.keypoints.T
            visibility[(visibility == 2) & mask[y, x]] = 1
    keypoints = None
    if figure.keypoints is not None:
        keypoints = np.full((len(figure.keypoints), 3), 2, np.int64)
        keypoints[:, :2] = np.floor(figure.keypoints + corner)
        outside = ((keypoints[:, :2] < 0) | (keypoints[:, :2] >= size[::-1])).any(axis=1)
        keypoints[outside] = 0
    instances.append(Instance(name, mask, keypoints, is_crowd))


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: a muted tone with coarse and fine texture."""
    tone = rng.uniform(60, 190) + rng.uniform(-18, 18, 3)
    picture = np.full((height, width, 3), tone, np.float32)
    for cells, strength in ((4, 28), (14, 12), (48, 8)):
        coarse = rng.standard_normal((max(2, cells * height // max(height, width)), cells, 3), np.float32)
        grey = coarse.mean(axis=2, keepdims=True) * 1.5
        picture += cv2.resize((grey + 0.3 * coarse) * strength, (width, height), interpolation=cv2.INTER_CUBIC)
    return picture.clip(0, 255).astype(np.uint8)


def _clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    """Strokes, arcs, specks and letters in muted colours: things that are no instance of any class."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(4, 12))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        near = image[y, x].astype(int)
        color = tuple((near + rng.integers(-60, 61)).clip(0, 255).tolist())
        thickness = int(rng.integers(1, 4))
        kind = int(rng.integers(4))
        if kind == 0:
            end = (x + int(rng.integers(-60, 61)), y + int(rng.integers(-60, 61)))
            cv2.line(image, (x, y), end, color, thickness, cv2.LINE_AA)
        elif kind == 1:
            axes = (int(rng.integers(8, 40)), int(rng.integers(8, 40)))
            start = int(rng.integers(360))
            stop = start + int(rng.integers(60, 200))
            cv2.ellipse(image, (x, y), axes, int(rng.integers(180)), start, stop, color, thickness, cv2.LINE_AA)
        elif kind == 2:
            for dx, dy in rng.integers(-20, 21, (5, 2)).tolist():
                cv2.circle(image, (x + dx, y + dy), int(rng.integers(1, 3)), color, -1, cv2.LINE_AA)
        else:
            letter = chr(ord("A") + int(rng.integers(26)))
            font, size = cv2.FONT_HERSHEY_SIMPLEX, float(rng.uniform(0.5, 1.4))
            cv2.putText(image, letter, (x, y), font, size, color, thickness, cv2.LINE_AA)

"""Drawn figures of the generated data set: a person with 17 keypoints, and four plain shapes.

A figure is drawn on its own small canvas at three times its size and scaled down, which gives true coverage at the
edges. The person faces the viewer: its left side is on the right of the picture, as in a photograph. Left and right
therefore follow from the body alone, and a horizontal flip with swapped left and right names, the usual augmentation,
yields another correct picture. A colour of its own for the left arm would contradict that augmentation. Instead every
limb has two colours (sleeve and forearm, trouser and shin), so that elbows and knees can be seen.

Legend: ``H, W`` height and width of the canvas in pixels, ``K`` keypoints.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .coco import KEYPOINT_NAMES

SHAPES = ("disc", "square", "triangle", "star")

_OVERSAMPLING = 3
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates
_SKIN = ((150, 185, 235), (120, 160, 215), (90, 130, 190), (60, 95, 150), (170, 205, 245))  # BGR


@dataclass(frozen=True)
class Figure:
    """A drawn figure on a transparent canvas.

    Attributes:
        color: (H, W, 3) float32, BGR in 0..255, already multiplied by ``alpha``.
        alpha: (H, W) float32, coverage in 0..1.
        keypoints: (K, 2) float64, x and y on the canvas in pixels (0.5 is the centre of the first pixel), or None.
    """

    color: np.ndarray
    alpha: np.ndarray
    keypoints: np.ndarray | None = None


def draw_shape(rng: np.random.Generator, name: str, size: float) -> Figure:
    """One of ``SHAPES``, ``size`` pixels across, with random colours, pattern and rotation."""
    side = int(np.ceil(size)) + 4
    centre, radius = side / 2, size / 2
    outline = _outline(rng, name) * radius + centre
    inner = (outline - centre) * (1 - max(0.1, 1.3 / radius)) + centre
    alpha, inside = _coverage(outline, side), _coverage(inner, side)
    fill = _pattern(rng, side)
    edge = np.asarray(_dark(rng), np.float32)
    color = fill * inside[..., None] + edge * (alpha - inside).clip(0)[..., None]
    return Figure(color.astype(np.float32), alpha)


def draw_person(rng: np.random.Generator, size: float) -> Figure:
    """A person about ``size`` pixels tall (arms down), in a random pose, leaning by up to 40 degrees."""
    joints = _pose(rng)
    angle = np.deg2rad(rng.uniform(-40, 40))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([rng.uniform(0.95, 1.2), 1.0])
    points = {name: rotation @ (np.asarray(point) * stretch) * size for name, point in joints.items()}
    margin = 0.14 * size + 3
    corner = np.min(list(points.values()), axis=0) - margin
    extent = np.max(list(points.values()), axis=0) + margin - corner
    points = {name: point - corner for name, point in points.items()}

    width, height = (int(np.ceil(value)) for value in extent)
    canvas = np.zeros((height * _OVERSAMPLING, width * _OVERSAMPLING, 3), np.uint8)
    cover = np.zeros(canvas.shape[:2], np.uint8)
    skin = _SKIN[rng.integers(len(_SKIN))]
    shirt, trousers, shoes, hair = _bright(rng), _bright(rng), _bright(rng), _dark(rng)
    rim = max(0.016 * size, 0.6)
    limb = max(0.075 * size, 2.6)

    def line(first: str, second: str, color: tuple[int, int, int], thickness: float = limb) -> None:
        ends = [_fixed(points[first]), _fixed(points[second])]
        pixels = max(1, round(thickness * _OVERSAMPLING))
        cv2.line(canvas, ends[0], ends[1], color, pixels, cv2.LINE_8, _SHIFT)
        cv2.line(cover, ends[0], ends[1], 255, pixels, cv2.LINE_8, _SHIFT)

    def dot(name: str, color: tuple[int, int, int], radius: float) -> None:
        scaled = round(radius * _OVERSAMPLING * (1 << _SHIFT))
        cv2.circle(canvas, _fixed(points[name]), scaled, color, -1, cv2.LINE_8, _SHIFT)
        cv2.circle(cover, _fixed(points[name]), scaled, 255, -1, cv2.LINE_8, _SHIFT)

    def chain(names: tuple[str, str, str], upper: tuple[int, int, int], lower: tuple[int, int, int]) -> None:
        for first, second in (names[:2], names[1:]):
            line(first, second, (25, 25, 25), limb + 2 * rim)
        line(names[1], names[2], lower)
        line(names[0], names[1], upper)

    for side in ("left", "right"):
        chain((f"{side}_hip", f"{side}_knee", f"{side}_ankle"), trousers, shoes)
        dot(f"{side}_ankle", (25, 25, 25), 0.055 * size + rim)
        dot(f"{side}_ankle", shoes, 0.055 * size)
    for border, color in ((rim, (25, 25, 25)), (0.0, shirt)):
        trunk = ("left_shoulder", "right_shoulder", "right_hip", "left_hip")
        corners = np.array([_fixed(points[name]) for name in trunk], np.int32)
        cv2.fillConvexPoly(canvas, corners, color, cv2.LINE_8, _SHIFT)
        cv2.fillConvexPoly(cover, corners, 255, cv2.LINE_8, _SHIFT)
        for first, second in zip(trunk, trunk[1:] + trunk[:1], strict=True):
            line(first, second, color, limb + 2 * border)
    line("neck", "head", skin, limb)
    for side in ("left", "right"):
        chain((f"{side}_shoulder", f"{side}_elbow", f"{side}_wrist"), shirt, skin)
        dot(f"{side}_wrist", skin, 0.05 * size)
    for name in ("left_ear", "right_ear"):
        dot(name, (25, 25, 25), 0.035 * size + rim)
        dot(name, skin, 0.035 * size)
    dot("head", (25, 25, 25), 0.12 * size + rim)
    dot("head", skin, 0.12 * size)
    _hair(canvas, points, hair, size)
    for name in ("left_eye", "right_eye"):
        dot(name, (250, 250, 250), max(0.034 * size, 0.9))
        dot(name, (30, 30, 30), max(0.019 * size, 0.6))
    dot("nose", (50, 50, 200), max(0.022 * size, 0.6))

    scaled_down = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    alpha = cv2.resize(cover, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return Figure(scaled_down, alpha, np.array([points[name] for name in KEYPOINT_NAMES]))


def _pose(rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Joints of a person of height 1; x to the right of the picture, y downwards, the pelvis at the origin."""
    joints: dict[str, tuple[float, float]] = {"head": (0.0, -0.46), "neck": (0.0, -0.30), "nose": (0.0, -0.445)}
    for side, sign in (("left", 1), ("right", -1)):
        joints[f"{side}_eye"] = (sign * 0.05, -0.49)
        joints[f"{side}_ear"] = (sign * 0.125, -0.465)
        joints[f"{side}_shoulder"] = shoulder = (sign * 0.125, -0.29)
        joints[f"{side}_hip"] = hip = (sign * 0.075, 0.0)
        # Angles are measured from straight down, positive away from the body.
        thigh = rng.uniform(0, 45)
        joints[f"{side}_knee"] = knee = _reach(hip, sign, thigh, 0.21)
        joints[f"{side}_ankle"] = _reach(knee, sign, thigh + rng.uniform(-40, 10), 0.21)
        for _ in range(20):
            upper = rng.uniform(5, 165)
            elbow = _reach(shoulder, sign, upper, 0.17)
            wrist = _reach(elbow, sign, upper + rng.uniform(-60, 90), 0.16)
            if _clear_of_head(elbow, wrist) and _distance(wrist, hip) > 0.11:
                break
        else:  # arm stretched out: always clear
            elbow, wrist = _reach(shoulder, sign, 80, 0.17), _reach(shoulder, sign, 80, 0.33)
        joints[f"{side}_elbow"], joints[f"{side}_wrist"] = elbow, wrist
    return joints


def _reach(start: tuple[float, float], sign: int, degrees: float, length: float) -> tuple[float, float]:
    radians = np.deg2rad(degrees)
    return start[0] + sign * length * np.sin(radians), start[1] + length * np.cos(radians)


def _distance(first: tuple[float, float], second: tuple[float, float]) -> float:
    return float(np.hypot(first[0] - second[0], first[1] - second[1]))


def _clear_of_head(elbow: tuple[float, float], wrist: tuple[float, float]) -> bool:
    middle = ((elbow[0] + wrist[0]) / 2, (elbow[1] + wrist[1]) / 2)
    return all(_distance(point, (0.0, -0.46)) > 0.22 for point in (elbow, middle, wrist))


def _hair(canvas: np.ndarray, points: dict[str, np.ndarray], color: tuple[int, int, int], size: float) -> None:
    up = points["head"] - points["neck"]
    degrees = float(np.degrees(np.arctan2(up[1], up[0])))
    radius = round(0.12 * size * _OVERSAMPLING)
    x, y = (round(value * _OVERSAMPLING) for value in points["head"].tolist())
    arc = cv2.ellipse2Poly((x, y), (radius, radius), round(degrees), -60, 60, 6)
    cv2.fillConvexPoly(canvas, np.array(arc), color, cv2.LINE_8)


def _outline(rng: np.random.Generator, name: str) -> np.ndarray:
    """(N, 2) corners within the unit circle, turned at random."""
    if name == "disc":
        turns, radii = np.arange(64) / 64, np.ones(64)
    elif name == "square":
        turns, radii = np.arange(4) / 4 + 0.125, np.ones(4)
    elif name == "triangle":
        turns, radii = np.arange(3) / 3, np.ones(3)
    elif name == "star":
        turns, radii = np.arange(10) / 10, np.where(np.arange(10) % 2, 0.45, 1.0)
    else:
        raise AssertionError(f"no shape {name!r}")
    squeeze = np.array([1.0, rng.uniform(0.82, 1.0)])
    corners = np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1) * radii[:, None] * squeeze
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    return corners @ np.array([[cosine, sine], [-sine, cosine]])


def _coverage(outline: np.ndarray, side: int) -> np.ndarray:
    """(side, side) share of each pixel inside the polygon ``outline`` (N, 2)."""
    cover = np.zeros((side * _OVERSAMPLING, side * _OVERSAMPLING), np.uint8)
    corners = np.rint((outline * _OVERSAMPLING - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(cover, [corners], 255, cv2.LINE_8, _SHIFT)
    return cv2.resize(cover, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _pattern(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3) plain, striped, checked or shaded area in random colours."""
    first, second = np.asarray(_bright(rng), np.float32), np.asarray(_bright(rng), np.float32)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), max(4.0, side * rng.uniform(0.2, 0.4))
    along = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    kind = rng.integers(4)
    if kind == 0:
        weight = np.zeros_like(along)
    elif kind == 1:
        weight = (np.sin(along) > 0).astype(np.float32)
    elif kind == 2:
        across = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period
        weight = (np.sin(along) * np.sin(across) > 0).astype(np.float32)
    else:
        weight = (along - along.min()) / (np.ptp(along) + 1e-6)
    return first + (second - first) * weight[..., None]


def _bright(rng: np.random.Generator) -> tuple[int, int, int]:
    """A saturated BGR colour of any hue."""
    hsv = np.array([[[rng.integers(180), rng.integers(140, 256), rng.integers(170, 256)]]], np.uint8)
    return tuple(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].tolist())


def _dark(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(rng.integers(10, 70, 3).tolist())


def _fixed(point: np.ndarray) -> tuple[int, int]:
    """Canvas pixels to OpenCV's fixed-point coordinates, whose whole numbers are centres of (small) pixels."""
    x, y = (round((float(value) * _OVERSAMPLING - 0.5) * (1 << _SHIFT)) for value in point)
    return x, y

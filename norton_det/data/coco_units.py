"""What the boxes of a file look like beside its pictures: COCO's pixels from the upper left corner, or another form.

A form fits a box that would lie inside its picture. COCO's ``[x, y, width, height]`` is believed unless nearly all
boxes fit another form, and many do not fit this one; polygons, which say where their objects are, decide before that.

Legend: ``N`` boxes; a corner form is (x1, y1, x2, y2).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import InputError
from ..utils.files import require_file, write_text

COCO = "xywh"
FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    COCO: lambda box: np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], 1),
    "corners": lambda box: box,
    "center": lambda box: np.concatenate([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1),
    "yx-corners": lambda box: box[:, [1, 0, 3, 2]],
}
"""From the numbers (N, 4) of a form to corners (N, 4)."""
_SAID = {
    COCO: "[x, y, width, height]",
    "corners": "corners [x1, y1, x2, y2]",
    "center": "[middle x, middle y, width, height]",
    "yx-corners": "corners [y1, x1, y2, x2]",
}
_SCALES = {"relative": 1.0, "percent": 100.0}  # that stand for the width or height of the picture
_POLYGONS = 500  # that are looked at
_SLACK, _SHARE = 2.0, 0.01  # pixels, and share of the side, that a box may reach out of its picture


def boxes_problem(file: Path, annotations: Sequence[Mapping[str, Any]], sizes: Mapping[Any, tuple[int, int]]) -> str:
    """What the boxes of a file look like if it is not COCO's form, and how to convert them; empty where it is.

    Args:
        file: its name, for the mend.
        annotations: of which each is checked by itself.
        sizes: height and width of each image by its id.
    """
    things = [thing for thing in annotations if thing["bbox"][2] > 0 or thing["bbox"][3] > 0]
    if not things:
        return ""
    boxes, sides = _arrays(things, sizes)
    unit = _unit_of(boxes, sides)
    if unit:
        scale = _SCALES[unit]
        shares = {form: _fits(form, boxes * 256 / scale, np.full_like(sides, 256)).mean() for form in FORMS}
        form = _by_polygons(things, boxes * np.tile(sides / scale, 2)) or max(shares, key=lambda form: shares[form])
        looks, reason = f"relative to their pictures, 0 to {scale:g}, as {_SAID[form]}", "pixels"
    else:
        form = _by_polygons(things, boxes) or _by_pictures(boxes, sides)
        if form == COCO:
            return _outlines_problem(things)
        outside = f"{int((~_fits(COCO, boxes, sides)).sum())} of {len(boxes)} reach out of their pictures"
        if not form:
            return (
                f"boxes: {outside}: they look annotated at another size; scale them to the pictures' height and width"
            )
        looks, reason = f"like {_SAID[form]}", f"[x, y, width, height], as which {outside}"
    word = "-".join(part for part in (unit, form) if part)
    return (
        f'boxes: look {looks}, expected {reason}; convert them: python -c "from norton_det.data import convert_boxes; '
        f"convert_boxes('{file}', '{file.with_suffix('')}_pixels.json', '{word}')\""
    )


def convert_boxes(source: str | Path, target: str | Path, form: str) -> None:
    """Write a COCO file anew whose boxes have another form, in COCO's own; pictures need not be there.

    Polygons and keypoints are scaled with boxes that are relative to their pictures, where they are relative too. The
    area of an object without a mask becomes that of its box.

    Args:
        source: the JSON file.
        target: of the new one.
        form: a key of ``FORMS``, with ``relative-`` (0 to 1) or ``percent-`` (0 to 100) before it where the numbers
            are shares of width and height.

    Raises:
        InputError: no such file or form, or not COCO's.
    """
    unit, _, name = form.partition("-") if form.partition("-")[0] in _SCALES else ("", "", form)
    if name not in FORMS:
        raise InputError(
            f"form: expected {', '.join(FORMS)}, or relative- or percent- before it, got {form!r}; use one"
        )
    path = require_file(source, "COCO annotations (JSON)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        annotations = content["annotations"]
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        boxes, sides = _arrays(annotations, sizes)
    except (ValueError, KeyError, TypeError, IndexError):
        raise InputError(f"{path}: expected COCO's images with sizes and annotations with boxes, got others") from None
    scales = sides / _SCALES[unit] if unit else np.ones_like(sides)
    corners = FORMS[name](boxes)
    written = (corners[:, 2:] - corners[:, :2]).prod(1)  # areas of boxes in the file's own units
    masked = [place for place, thing in enumerate(annotations) if thing.get("segmentation")]
    fill = [annotations[place].get("area", 0) / max(written[place], 1e-9) for place in masked]
    mask_scales = scales if _all_within(_polygons(annotations), _SCALES.get(unit)) else np.ones_like(sides)
    point_scales = scales if _all_within(_keypoints(annotations), _SCALES.get(unit)) else np.ones_like(sides)
    area_scales = scales.prod(1) if unit and masked and np.median(fill) <= 1.01 else np.ones(len(sides))
    for place, thing in enumerate(annotations):
        x, y, right, bottom = map(float, corners[place] * np.tile(scales[place], 2))
        thing["bbox"] = [x, y, right - x, bottom - y]
        thing["area"] = (
            thing.get("area", 0) * float(area_scales[place])
            if thing.get("segmentation")
            else (right - x) * (bottom - y)
        )
        if isinstance(thing.get("segmentation"), list):
            thing["segmentation"] = [_scaled(polygon, mask_scales[place], 2) for polygon in thing["segmentation"]]
        if thing.get("keypoints"):
            thing["keypoints"] = _scaled(thing["keypoints"], point_scales[place], 3)
    write_text(target, json.dumps(content))


def count_outside(annotations: Sequence[Mapping[str, Any]], sizes: Mapping[Any, tuple[int, int]]) -> int:
    """How many boxes reach out of their picture by more than a pixel."""
    boxes, sides = _arrays(annotations, sizes)
    ends = boxes[:, :2] + boxes[:, 2:]
    return int(((boxes[:, :2] < -1) | (ends > sides + 1)).any(1).sum())


def _arrays(
    annotations: Sequence[Mapping[str, Any]], sizes: Mapping[Any, tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) as they are written, and width and height of their pictures (N, 2)."""
    boxes = np.array([thing["bbox"] for thing in annotations], np.float64).reshape(-1, 4)
    sides = np.array([sizes[thing["image_id"]] for thing in annotations], np.float64).reshape(-1, 2)
    return boxes, sides[:, ::-1]


def _polygons(annotations: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[float]]:
    """The numbers of all polygons, one at a time."""
    for thing in annotations:
        yield from thing["segmentation"] if isinstance(thing.get("segmentation"), list) else ()


def _keypoints(annotations: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[float]]:
    """The x and y of the keypoints of each object."""
    for thing in annotations:
        points = thing.get("keypoints") or ()
        yield [*points[::3], *points[1::3]]


def _all_within(lists: Iterable[Sequence[float]], most: float | None) -> bool:
    """Whether all numbers are shares of a picture's side that is ``most``."""
    return most is not None and max((max(numbers, default=0) for numbers in lists), default=0) <= 1.01 * most


def _scaled(numbers: Sequence[float], scale: np.ndarray, step: int) -> list[float]:
    """Every first and second of ``step`` numbers times the scales of x and y."""
    values = np.array(numbers, np.float64).reshape(-1, step)
    values[:, :2] *= scale
    return values.ravel().tolist()


def _unit_of(boxes: np.ndarray, sides: np.ndarray) -> str:
    """A key of ``_SCALES`` where the numbers are shares of the picture's sides; empty for pixels."""
    if sides.min() > 4 and (np.abs(boxes).max(1) <= 1.01).mean() > 0.5:
        return "relative"
    if len(boxes) < 10 or np.abs(boxes).max() > 101 or np.median(sides.min(1)) < 200:
        return ""
    return "percent" if ((boxes[:, :2] + boxes[:, 2:]).max(0) > 85).all() else ""


def _fits(form: str, boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Whether each box (N,) would lie inside its picture in this form; others than COCO's have to do so by a pixel."""
    tolerance = _SLACK + _SHARE * sides if form == COCO else 1 / 256 * sides.clip(max=256)
    corners = FORMS[form](boxes)
    inside = (corners[:, :2] >= -tolerance) & (corners[:, 2:] <= sides + tolerance)
    return np.logical_and.reduce(inside & (corners[:, 2:] >= corners[:, :2]), axis=1)


def _outlines_problem(things: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with polygons and keypoints beside boxes in pixels; empty where nothing is."""
    for field, lists in (("segmentation", _polygons(things)), ("keypoints", _keypoints(things))):
        largest = [max(numbers) for numbers in lists if any(numbers)]
        if largest and np.mean(np.array(largest) <= 1.01) > 0.5:
            return (
                f"{field}: look relative to their pictures, 0 to 1, beside boxes in pixels; multiply x by the width "
                "and y by the height of the picture"
            )
    return ""


def _by_pictures(boxes: np.ndarray, sides: np.ndarray) -> str:
    """The form that the sizes of pictures speak for; empty where most boxes are outside in every form."""
    shares = {form: float(_fits(form, boxes, sides).mean()) for form in FORMS}
    outside, count = round((1 - shares[COCO]) * len(boxes)), len(boxes)
    least = {"corners": max(min(3, count), 0.1 * count), "center": max(5, 0.03 * count)}
    least["yx-corners"] = least["corners"]
    for form, enough in least.items():
        if shares[form] >= 0.995 and outside >= enough:
            return form
    if outside < min(3, count) or shares[COCO] >= 0.5:
        return COCO
    best = max(least, key=lambda form: shares[form])
    return best if shares[best] >= 0.9 else COCO if outside < 5 else ""


def _by_polygons(things: Sequence[Mapping[str, Any]], boxes: np.ndarray) -> str:
    """The form in which boxes are those round their polygons; empty where these are few, or agree with none."""
    masked = [place for place, thing in enumerate(things) if thing.get("segmentation")]
    masked = [place for place in masked if isinstance(things[place]["segmentation"], list)]
    masked = masked[:: max(1, len(masked) // _POLYGONS)]
    if len(masked) < 3:
        return ""
    points = [
        np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in things[place]["segmentation"]]) for place in masked
    ]
    around = np.array([[*each.min(0), *each.max(0)] for each in points], np.float64)
    tolerance = 2 + 0.05 * (around[:, 2:] - around[:, :2]).max(1)
    for form, corners_of in FORMS.items():
        if (np.abs(corners_of(boxes[masked]) - around).max(1) <= tolerance).mean() > 0.8:
            return form
    return ""

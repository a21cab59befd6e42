"""Keypoints by their names: which ones a mirrored picture swaps, and how exactly each can be placed.

A name says a side by a word of its own (``left_eye``, ``R_F_Paw``, ``eye-L``, ``LEye``, ``Left Eye``), or grown
together with the rest (``lefteye``, ``rshoulder``, ``wheel_fl``). The latter counts where the other side is there too:
``light``, ``lip``, ``rear`` and ``leftover`` say none.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import InputError

USUAL_SIGMA = 0.05  # COCO's persons have 0.025 (eyes) to 0.107 (hips)
_COCO_COUNT = 17  # whose sigmas COCO's evaluation has
_WORDS = {"left": 0, "right": 1, "l": 0, "r": 1, "lt": 0, "rt": 1, "lft": 0, "rgt": 1, "lhs": 0, "rhs": 1}
_LONG, _SHORT = r"left|right", r"^[lr](?=.)|(?<=.)[lr]$"  # grown together with another word
_NO_SIDE = re.compile(r"left(over|ward|y|ies)|right(eous|ful|ly|y|s$)")  # words of English that begin with a side
_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
_LIMB_COLORS = ((0, 114, 189), (217, 83, 25), (237, 177, 32), (126, 47, 142), (119, 172, 48), (77, 190, 238))
Key = tuple[str, tuple[int, ...]]  # what a name says beside its sides, and these: 0 left, 1 right


@dataclass(frozen=True)
class Sides:
    """What a mirrored picture does to keypoints.

    Attributes:
        pairs: names (left, right) that it swaps.
        lonely: names that say a side, but it is not clear which is the other one.
    """

    pairs: tuple[tuple[str, str], ...]
    lonely: tuple[str, ...]


def find_sides(names: Sequence[str]) -> Sides:
    """Pair keypoints by the sides that their names say."""
    words = {name: key for name in names if (key := _by_words(name)) is not None}
    partners: dict[str, dict[str, bool]] = {name: {} for name in names}  # whether the name is the left one
    _meet(partners, {name: [key] for name, key in words.items()})
    alone = [name for name in names if not partners[name]]
    _meet(partners, {name: [words[name]] if name in words else list(_grown(name, _LONG)) for name in alone})
    alone = [name for name in names if not partners[name] and name not in words]
    _meet(partners, {name: list(_grown(name, _SHORT)) for name in alone})
    pairs, lonely = [], []
    for name, others in partners.items():
        if len(others) == 1 and list(partners[other := next(iter(others))]) == [name]:
            pair = (name, other) if others[other] else (other, name)
            if pair not in pairs:
                pairs.append(pair)
        elif others or name in words or _begins_with_side(name):
            lonely.append(name)
    return Sides(tuple(pairs), tuple(lonely))


def same_keypoints(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists name the same keypoints in the same order, however they write them."""
    return list(map(_canonical, first)) == list(map(_canonical, second))


def keypoint_fields(file: Path, categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Detectron2's keypoint metadata from COCO's categories, and beside it ``keypoints_lonely`` (see ``Sides``) and
    ``keypoint_sigmas``, as a category says them; empty when none has keypoints.

    Raises:
        InputError: categories with other keypoints, a name twice, or a limb between keypoints that are not there.
    """
    with_keypoints = [category for category in categories if category.get("keypoints")]
    if not with_keypoints:
        return {}
    # Tuples, as Detectron2 has them for COCO: it compares the metadata of data sets that are used together.
    names = tuple(map(str, with_keypoints[0]["keypoints"]))
    for category in with_keypoints:
        if tuple(map(str, category["keypoints"])) != names:
            raise InputError(
                f"{file}: expected the same keypoints in every category, {category['name']} has others; "
                "Detectron2 takes one list"
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{file}: keypoints: expected names that differ, got {twice!r} twice; name each")
    limbs = []
    for index, pair in enumerate(with_keypoints[0].get("skeleton") or []):
        in_range = isinstance(pair, list) and all(isinstance(end, int) and 1 <= end <= len(names) for end in pair)
        if not in_range or len(pair) != 2:
            raise InputError(f"{file}: skeleton[{index}]: expected two of 1 to {len(names)}, got {pair!r}; mend it")
        limbs.append((names[pair[0] - 1], names[pair[1] - 1], _LIMB_COLORS[index % len(_LIMB_COLORS)]))
    sides = find_sides(names)
    return {
        "keypoint_names": names,
        "keypoint_flip_map": sides.pairs,
        "keypoint_connection_rules": limbs,
        "keypoints_lonely": sides.lonely,
        "keypoint_sigmas": _sigmas(with_keypoints[0].get("sigmas"), len(names)),
    }


def choose_sigmas(count: int, asked: Sequence[float], given: Sequence[float]) -> tuple[float, ...] | None:
    """The sigmas of COCO's similarity of keypoints (OKS): those asked for, else those of the data set, else COCO's.

    Args:
        count: of keypoints.
        asked: in a config or on the command line; empty for none.
        given: by the data set; empty for none.

    Returns:
        One for each keypoint, empty for COCO's own 17; ``None`` where none of them fits.
    """
    for sigmas in (_sigmas(list(asked), count), given):
        if len(sigmas) == count:
            return tuple(sigmas)
    return () if count == _COCO_COUNT and not asked else None


def _sigmas(values: Any, count: int) -> tuple[float, ...]:
    """These, if they are as many numbers above 0; else none."""
    good = isinstance(values, list) and len(values) == count
    return tuple(values) if good and all(type(v) in (int, float) and 0 < v < 100 for v in values) else ()


def _meet(partners: dict[str, dict[str, bool]], keys: Mapping[str, Iterable[Key]]) -> None:
    """Note for each name those that say the same of the other side."""
    by_key: dict[Key, list[str]] = defaultdict(list)
    for name, said in keys.items():
        for key in said:
            by_key[key].append(name)
    for name, said in keys.items():
        for rest, sides in said:
            for other in by_key.get((rest, tuple(1 - side for side in sides)), ()):
                partners[name][other] = sides[0] == 0


def _tokens(name: str) -> list[str]:
    return [token.lower() for token in _TOKEN.findall(name)]


def _by_words(name: str) -> Key | None:
    """What a name says whose sides are words of their own; their places count where there are several."""
    tokens = _tokens(name)
    sides = tuple(_WORDS[token] for token in tokens if token in _WORDS)
    if not sides:
        return None
    gap = "" if len(sides) == 1 else "/"
    return "".join(gap if token in _WORDS else token for token in tokens), sides


def _grown(name: str, pattern: str) -> Iterator[Key]:
    """What a name may say by a side that is a part of a word, one reading at a time."""
    tokens = _tokens(name)
    for place, token in enumerate(tokens):
        for side in re.finditer(pattern, token):
            rest = token[: side.start()] + token[side.end() :]
            yield "".join([*tokens[:place], rest, *tokens[place + 1 :]]), (_WORDS[side[0]],)


def _begins_with_side(name: str) -> bool:
    return any(token.startswith(("left", "right")) and not _NO_SIDE.match(token) for token in _tokens(name))


def _canonical(name: str) -> Key:
    return _by_words(name) or next(_grown(name, _LONG), ("".join(_tokens(name)), ()))

"""Which class of a data set each output of a detector is: by name, else by category id, else as it is said in a line.

Numbers alone mislead: torchvision's COCO detectors number by category id, 1 to 90 with gaps, Detectron2's from 0
without, and two data sets of the same classes may list them in another order. No class here is the background.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..models.labels import BACKGROUND, Labels
from ..utils.errors import InputError

_NOTHING = ("", "n/a", BACKGROUND)  # names of outputs that stand for nothing; torchvision's COCO has N/A


@dataclass(frozen=True)
class ClassMatch:
    """What the outputs of a detector are in a data set.

    Attributes:
        targets: by output, the number of the data set's class; ``None`` for an output that it has no class for.
        notes: what the user has to know of it, in lines; empty where both have the same classes.
    """

    targets: tuple[int | None, ...]
    notes: tuple[str, ...] = ()


def match_classes(detector: Labels, num_classes: int, dataset: Labels, name: str) -> ClassMatch:
    """Match the outputs of a detector with the classes of a data set.

    Args:
        detector: what is known of it.
        num_classes: its number of classes; 0 if it is not known.
        dataset: its classes and their category ids.
        name: of the data set, for messages.

    Raises:
        InputError: they have no class in common, or nothing says what the outputs stand for.
    """
    if detector.classes and not (detector.assumed and _strangers(detector.classes, dataset.classes)):
        return _by_name(detector.classes, dataset.classes, name)
    if detector.category_ids and dataset.category_ids and not detector.assumed:
        return _by_id(detector.category_ids, dataset, name)
    return _by_number(num_classes, dataset, name)


def fold(text: str) -> str:
    """A name as names are compared where they are not equal: case, and spaces for ``_`` and ``-``, do not matter."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def match_names(names: Sequence[str], known: Sequence[str]) -> tuple[int | None, ...]:
    """For each name its place in ``known``: of the equal one, else of the one that is equal when folded.

    A place is given once; a folded name that is there twice is nobody's.
    """
    if list(names) == list(known):  # also where a name is there twice
        return tuple(range(len(known)))
    places = {name: place for place, name in enumerate(known)}
    exact = [places.get(name) for name in names]
    given = {place for place in exact if place is not None}
    count, asked = Counter(map(fold, known)), Counter(map(fold, names))
    folded = {fold(name): place for place, name in enumerate(known) if place not in given and count[fold(name)] == 1}
    return tuple(
        place if place is not None or asked[fold(name)] > 1 else folded.get(fold(name))
        for name, place in zip(names, exact, strict=True)
    )


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names in a line, the first of them where there are many."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message on a name that is not known: the nearest that are; empty where none is near."""
    by_folded = {fold(other): other for other in known}
    close = difflib.get_close_matches(fold(name), by_folded, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(by_folded[other] for other in close)}?" if close else ""


def _by_name(names: Sequence[str], known: Sequence[str], dataset: str) -> ClassMatch:
    real = [name for name in names if fold(name) not in _NOTHING]
    targets = tuple(None if fold(name) in _NOTHING else place for name, place in _pairs(names, known))
    matched = {place for place in targets if place is not None}
    if not matched:
        raise InputError(
            f"{dataset}: expected classes of the detector's {len(real)} ({listed(real)}), got {listed(known)}, none of "
            "which it knows; name the data set that it is for, or give the categories in the JSON its names"
        )
    notes = []
    if missing := [name for place, name in enumerate(known) if place not in matched]:
        notes.append(
            f"{dataset}: {len(missing)} of {len(known)} classes are unknown to the detector, their objects count as "
            f"missed: {listed(missing, 10)}"
        )
    if others := len(real) - len(matched):
        notes.append(
            f"{dataset}: has no class for {others} of the detector's {len(real)}; what is found of these is left out"
        )
    return ClassMatch(targets, tuple(notes))


def _strangers(names: Sequence[str], known: Sequence[str]) -> bool:
    """Whether two lists have no name in common."""
    return all(place is None for place in match_names(names, known))


def _pairs(names: Sequence[str], known: Sequence[str]) -> list[tuple[str, int | None]]:
    return list(zip(names, match_names(names, known), strict=True))


def _by_id(ids: Sequence[int | None], dataset: Labels, name: str) -> ClassMatch:
    places = {number: place for place, number in enumerate(dataset.category_ids)}
    targets = tuple(None if number is None else places.get(number) for number in ids)
    if all(place is None for place in targets):
        raise InputError(
            f"{name}: expected category ids of the detector ({listed([str(i) for i in ids if i is not None])}), got "
            f"{listed([str(i) for i in dataset.category_ids])}; name the data set that it is for"
        )
    note = f"{name}: the detector has no names; its outputs are matched by category id"
    unknown = len(dataset.classes) - len({place for place in targets if place is not None})
    return ClassMatch(targets, (note + (f", {unknown} classes are unknown to it" if unknown else ""),))


def _by_number(count: int, dataset: Labels, name: str) -> ClassMatch:
    """Outputs that nothing is known of: in order where there are as many, category ids where these have gaps."""
    size, ids = len(dataset.classes), dataset.category_ids
    largest = max((number for number in ids if number is not None), default=0)
    in_order = f"{name}: the detector has no names of classes; its outputs are taken in the data set's order"
    if count in (0, size):
        return ClassMatch(tuple(range(size)), (f"{in_order} ({listed(dataset.classes)})",))
    first = {largest: 1, largest + 1: 0}.get(count)  # the id of the first output
    if first is not None and largest > size and min(number for number in ids if number is not None) >= first:
        places = {number: place for place, number in enumerate(ids)}
        note = f"{name}: the detector has no names of classes; its {count} outputs are taken as category ids {first} on"
        return ClassMatch(tuple(places.get(output + first) for output in range(count)), (note,))
    raise InputError(
        f"{name}: expected a data set of the detector's {count} classes, got one of {size} ({listed(dataset.classes)})"
        "; name the one that it is for, or name its classes: nd.save_checkpoint(FILE, detector, classes=[...])"
    )

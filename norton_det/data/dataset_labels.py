"""What the classes and keypoints of registered data sets are, and whether sets that go together have the same ones.

The classes of a training are those of its data sets in order of appearance; those of a later set are met by name.
Detectron2 is imported by the functions, not with the module.
"""

import os
from collections.abc import Sequence

from ..models.labels import Labels
from ..utils.errors import InputError
from .class_match import listed, match_names, nearest
from .keypoints import USUAL_SIGMA, choose_sigmas, same_keypoints


def dataset_labels(name: str) -> Labels:
    """Classes with their category ids, and keypoints, of a registered data set; empty where they are not known."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    metadata = MetadataCatalog.get(name)
    if (
        name in DatasetCatalog
        and metadata.get("thing_classes") is None
        and os.path.isfile(metadata.get("json_file", ""))
    ):
        DatasetCatalog.get(name)  # of Detectron2's register_coco_instances, which learns of its classes now
    classes = tuple(metadata.get("thing_classes") or ())
    numbers = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    ids: list[int | None] = [None] * len(classes)
    for number, place in numbers.items():
        ids[place] = number
    return Labels(classes, tuple(ids) if numbers else (), tuple(metadata.get("keypoint_names") or ()))


def training_labels(names: Sequence[str]) -> Labels:
    """What a detector learns from data sets together: the classes of the first, then those that later ones add.

    A category id that stands for another class in an earlier set is left out. Keypoints are those of the first.
    """
    parts = [dataset_labels(name) for name in names]
    classes: list[str] = []
    ids: list[int | None] = []
    for part in parts:
        places = match_names(part.classes, classes)
        for place, known, number in zip(places, part.classes, part.category_ids or [None] * len(places), strict=True):
            if place is None:
                classes.append(known)
                ids.append(None if number in ids else number)
    known_ids = tuple(ids) if any(number is not None for number in ids) else ()
    return Labels(tuple(classes), known_ids, parts[0].keypoints if parts else ())


def check_training_classes(names: Sequence[str], num_classes: int, key: str = "MODEL.ROI_HEADS.NUM_CLASSES") -> None:
    """Refuse training sets whose classes are together other in number than the heads of a detector have.

    Args:
        names: of the data sets.
        num_classes: that the heads have.
        key: of a config that says so.

    Raises:
        InputError: names the sets, and the first class that differs where there are several.
    """
    first, classes = dataset_labels(names[0]).classes if names else (), training_labels(names).classes
    if not classes or len(classes) == num_classes:
        return
    if len(first) == num_classes:
        added = classes[len(first)]
        other = next(name for name in names if added in dataset_labels(name).classes)
        hint = nearest(added, first)
        raise InputError(
            f"DATASETS.TRAIN: expected the classes of {names[0]} ({listed(first)}) in {other} too, got {added!r}; "
            f"{hint + ' give' if hint else 'give'} it that name in the JSON, or set {key} "
            f"{len(classes)} to train on the classes of both"
        )
    raise InputError(
        f"{key}: expected {len(classes)}, the classes of {' and '.join(names)}, got "
        f"{num_classes}; set it to {len(classes)}"
    )


def check_keypoints(reference: Labels, of: str, names: Sequence[str]) -> None:
    """Refuse data sets with other keypoints than a reference, or the same in another order.

    Args:
        reference: with the keypoints that are expected; none where they are not known.
        of: what has them, for the message.
        names: of the data sets.

    Raises:
        InputError: names the set and the first keypoint that differs.
    """
    for name in names:
        expected, got = reference.keypoints, dataset_labels(name).keypoints
        if not expected or not got or same_keypoints(expected, got):
            continue
        pairs = list(zip(expected, got, strict=False))
        place = next(
            (place for place, pair in enumerate(pairs) if not same_keypoints(*([each] for each in pair))), None
        )
        if place is None:
            difference = f"{len(expected)} keypoints, got {len(got)}"
        else:
            difference = f"{expected[place]!r} as keypoint {place + 1}, got {got[place]!r}"
        raise InputError(
            f"{name}: expected the keypoints of {of} in their order: {difference}; bring those of its JSON into it"
        )


def dataset_sigmas(name: str, asked: Sequence[float], key: str = "") -> tuple[float, ...] | None:
    """A sigma of COCO's similarity (OKS) for each keypoint of a data set: those asked for, else its own, else COCO's.

    Args:
        name: registered with Detectron2.
        asked: such as ``TEST.KEYPOINT_OKS_SIGMAS``; empty for none.
        key: where they can be set. With it, sigmas that are needed and not there are refused.

    Returns:
        Empty for COCO's own 17, or without keypoints; ``None`` where none fit.

    Raises:
        InputError: none fit; says what would.
    """
    from detectron2.data import MetadataCatalog

    count = len(dataset_labels(name).keypoints)
    sigmas = choose_sigmas(count, asked, MetadataCatalog.get(name).get("keypoint_sigmas") or ()) if count else ()
    if sigmas is None and key:
        example, got = ",".join([f"{USUAL_SIGMA}"] * count), len(asked) or "none (those of COCO are for its 17)"
        raise InputError(
            f"{key}: expected {count} numbers above 0, one for each keypoint of {name}, got {got}; set it to "
            f'"({example},)" or give the category sigmas in the JSON'
        )
    return sigmas

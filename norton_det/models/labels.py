"""What the outputs of a detector stand for: names of classes and keypoints, and the ids of annotations.

A number alone says little: Detectron2 counts classes from 0 and torchvision from 1, torchvision's COCO detectors have
outputs that no object has, and two data sets may number the same classes otherwise. Whatever reads or writes a detector
therefore carries ``Labels``; ``labels_of`` and ``set_labels`` keep them on a detector itself.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ..utils.errors import InputError

_ATTRIBUTE = "norton_labels"
_LONGEST_NAME, _MOST = 200, 100_000
BACKGROUND = "background"  # torchvision's label 0


@dataclass(frozen=True)
class Labels:
    """What is known of a detector's outputs; the background is left out.

    Attributes:
        classes: a name for each class, in the order of the outputs; empty text for an output that stands for nothing.
            Empty where no name is known.
        category_ids: of COCO's annotations, in the same order; ``None`` for an output that stands for nothing. Empty
            where they are not known.
        keypoints: names in the order of the heatmaps; empty where they are not known.
        assumed: they are COCO's because the numbers of classes and keypoints are, and nothing else says so; files leave
            them out.
    """

    classes: tuple[str, ...] = ()
    category_ids: tuple[int | None, ...] = ()
    keypoints: tuple[str, ...] = ()
    assumed: bool = False

    def check(self, source: str, num_classes: int, num_keypoints: int | None) -> "Labels":
        """Themselves, if they fit a detector of so many classes (without the background) and keypoints.

        Raises:
            InputError: they do not, names the field.
        """
        expected = {"classes": num_classes, "category_ids": num_classes, "keypoints": num_keypoints or 0}
        for field, count in expected.items():
            values = getattr(self, field)
            if values and len(values) != count:
                raise InputError(
                    f"{source}: {field}: expected {count}, as many as the detector has, got {len(values)}: "
                    f"{', '.join(map(str, values[:5]))}; list all, in the order of its outputs"
                )
        return self

    def to_fields(self) -> dict[str, Any]:
        """As JSON has them; what is not known is left out."""
        fields = asdict(self)
        return {} if fields.pop("assumed") else {name: list(values) for name, values in fields.items() if values}

    @classmethod
    def from_fields(cls, fields: object) -> "Labels":
        """Of what ``to_fields`` gives.

        Raises:
            InputError: an unknown field, or values of another type.
        """
        known = {"classes": _is_name, "category_ids": _is_id, "keypoints": _is_name}
        values: dict[str, Any] = {}
        for name, value in fields.items() if isinstance(fields, dict) else [(str(fields)[:40], None)]:
            if name not in known:
                raise InputError(f"labels: unknown field {name[:40]!r}; update norton_det")
            if not isinstance(value, list) or len(value) > _MOST or not all(map(known[name], value)):
                raise InputError(f"labels: {name}: expected a list of names or ids, got {value!r:.80}; write it again")
            values[name] = tuple(value)
        return cls(**values)

    def by_label(self, first_label: int) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
        """Names and category ids by label, where the first class has this label: 0, or 1 after the background."""
        classes = (*([BACKGROUND] * first_label), *self.classes) if self.classes else ()
        ids = (*([None] * first_label), *self.category_ids) if self.category_ids else ()
        return classes, ids


def named(classes: Sequence[str], num_classes: int, source: str) -> tuple[str, ...]:
    """Names that a user gives of a detector's classes, without the background, which may lead them.

    Raises:
        InputError: neither as many as the detector has classes, nor one more.
    """
    names = tuple(classes)
    if len(names) == num_classes + 1 and names[0].strip("_ ").lower() == BACKGROUND:
        names = names[1:]
    return Labels(names).check(source, num_classes, None).classes


def set_labels(detector: nn.Module, labels: Labels) -> None:
    """Note on a detector what its outputs stand for; copies of it have it too."""
    setattr(detector, _ATTRIBUTE, labels)


def labels_of(detector: nn.Module) -> Labels:
    """What a detector's outputs stand for, as far as it was noted on it."""
    labels = getattr(detector, _ATTRIBUTE, None)
    return labels if isinstance(labels, Labels) else Labels()


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NAME


def _is_id(value: object) -> bool:
    return value is None or type(value) is int

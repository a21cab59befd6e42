"""What a deployed detector says of itself: preprocessing, outputs, classes. It travels in the exported file."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ..models.complexity import count_complexity
from ..models.input_size import LONGEST, is_size
from ..models.labels import Labels, labels_of, named
from ..models.stacks import STACKS, DetectionStack, stack_named, stack_of
from ..utils.errors import InputError
from .graph import output_names

VERSION = 2  # that is written; files of version 1 know no category ids and keypoints
COUNTED_SIZE = (800, 800)  # (H, W) of the image that MACs are of, as published
PRECISIONS = ("f32", "bf16", "f16", "int8")


@dataclass(frozen=True)
class DeployInfo:
    """Preprocessing that is not in the graph, and what the outputs are.

    Attributes:
        stack: whose rules hold for resizing, masks and keypoints: detectron2 or torchvision.
        outputs: names in order, see ``DetectorGraph.outputs``.
        color: RGB or BGR, what the graph's input is.
        min_size, max_size: pixels: the short side is resized to ``min_size`` unless the long one passes ``max_size``
            (``input_size``); a ``min_size`` of 0 leaves pictures at their size.
        classes: names by label, if they are known; torchvision's begin with "background".
        category_ids: of COCO's annotations, by label, if they are known; ``None`` for a label that no object has.
        keypoints: their names, if they are known.
        assumed: all these are COCO's by the numbers of classes and keypoints alone.
        num_classes: without the background; 0 in files of older versions.
        precision: f32, bf16, f16 (PyTorch alone) or int8, what the engine is asked for.
        proposals: of each image.
        macs, params: of the detector that was deployed, for an image of 800x800 (``count_complexity``); 0 in files of
            older versions.
    """

    stack: str
    outputs: tuple[str, ...]
    color: str
    min_size: int
    max_size: int
    classes: tuple[str, ...] = ()
    category_ids: tuple[int | None, ...] = ()
    keypoints: tuple[str, ...] = ()
    assumed: bool = False
    num_classes: int = 0
    precision: str = "f32"
    proposals: int = 1000
    macs: int = 0
    params: int = 0

    def to_json(self) -> str:
        return json.dumps({"version": VERSION} | asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str) -> "DeployInfo":
        """Read what ``to_json`` wrote.

        Raises:
            InputError: damaged, or of a newer version.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            version = fields.pop("version")
            if version not in (1, VERSION):
                raise InputError(f"{source}: version: expected 1 or {VERSION}, got {version!r}; update norton_det")
            fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
            info = cls(**fields)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(
                f"{source}: expected what norton_det exports, got damaged metadata; export again"
            ) from None
        info.check(source)
        return info

    def check(self, source: str) -> None:
        """Refuse values that make no sense.

        Raises:
            InputError: one line naming the field.
        """
        checks = {
            "stack": (self.stack in STACKS, " or ".join(STACKS)),
            "outputs": (tuple(self.outputs[:3]) == ("boxes", "scores", "labels"), "boxes, scores, labels, ..."),
            "color": (self.color in ("RGB", "BGR"), "RGB or BGR"),
            "min_size": (is_size(self.min_size, self.max_size), f"0 to max_size, at most {LONGEST}"),
            "precision": (self.precision in PRECISIONS, ", ".join(PRECISIONS)),
            "classes": (all(isinstance(name, str) for name in self.classes), "names"),
            "category_ids": (all(value is None or type(value) is int for value in self.category_ids), "whole numbers"),
            "assumed": (type(self.assumed) is bool, "true or false"),
            "keypoints": (all(isinstance(name, str) for name in self.keypoints), "names"),
            "num_classes": (type(self.num_classes) is int and self.num_classes >= 0, "0 or more"),
            "proposals": (isinstance(self.proposals, int) and self.proposals >= 1, "1 or more"),
            "macs": (type(self.macs) is int and self.macs >= 0, "0 or more"),
            "params": (type(self.params) is int and self.params >= 0, "0 or more"),
        }
        for field, (good, expected) in checks.items():
            if not good:
                raise InputError(f"{source}: {field}: expected {expected}, got {getattr(self, field)!r}; change it")

    @property
    def first_label(self) -> int:
        """The label of the first class."""
        return self.adapter.first_label

    @property
    def labels(self) -> Labels:
        """The classes without the background, their category ids, and keypoints, as far as they are known."""
        first = self.first_label
        return Labels(self.classes[first:], self.category_ids[first:], self.keypoints, self.assumed)

    @property
    def adapter(self) -> DetectionStack:
        """The stack itself.

        Raises:
            InputError: the stack is not installed.
        """
        return stack_named(self.stack)


def describe(detector: nn.Module, **changes: Any) -> DeployInfo:
    """What a detector says of itself, with changes by field; ``None`` changes nothing.

    ``classes`` are its names without the background, which may lead them; what it knows of itself is in ``labels_of``.

    Raises:
        InputError: not an R-CNN of either stack, or a value that makes no sense.
    """
    stack = stack_of(detector)
    heads = stack.heads_of(detector)
    fields: dict[str, Any] = {
        "stack": stack.name,
        "outputs": output_names("mask" in heads, "keypoint" in heads),
        "color": stack.preprocessing_of(detector).color,
    }
    labels = labels_of(detector)
    if (names := changes.pop("classes", None)) is not None:
        classes = named(names, stack.num_classes(detector), "classes")
        known = labels.category_ids if classes == labels.classes else ()
        labels = replace(labels, classes=classes, category_ids=known, assumed=False)
    labels.check("detector", stack.num_classes(detector), stack.num_keypoints(detector))
    fields["classes"], fields["category_ids"] = labels.by_label(stack.first_label)
    fields["keypoints"], fields["assumed"] = labels.keypoints, labels.assumed
    fields["num_classes"] = stack.num_classes(detector)
    fields |= asdict(stack.test_settings(detector))
    fields |= {name: value for name, value in changes.items() if value is not None}
    if unknown := set(fields) - set(DeployInfo.__dataclass_fields__):
        raise InputError(f"{sorted(unknown)[0]}: no such option; there are min_size, max_size, classes, precision")
    counted = count_complexity(detector, (3, *COUNTED_SIZE))
    info = DeployInfo(**{"macs": counted.macs, "params": counted.params} | fields)
    if changes.get("max_size") is None and type(info.min_size) is int:
        info = replace(info, max_size=max(info.max_size, info.min_size))
    info.check("detector")
    return info

"""MACs and parameters of a network or a whole detector, in all and per module; nothing is computed.

A MAC is one multiply-add. Counted are convolutions (also transposed) and linear layers, as in the table of the
NORTON paper for dense ResNet-50 (4.09 G); normalisation, activations, pooling, interpolation, biases and RoI
pooling are not. The count runs on a copy on PyTorch's meta device, so any size takes seconds and no memory.

A detector's work depends on its input: backbone, neck and RPN head see one image, the box head ``proposals``
regions, the mask and keypoint heads ``detections`` regions; its stack (see ``stacks``) says what these are.

Legend: ``H, W`` image, ``P`` regions, ``F`` feature channels, ``S`` sides of a pooled region.
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..utils.errors import InputError
from .mac_counter import MacCounter, Row, to_meta
from .stacks import is_detector, stack_of


@dataclass(frozen=True)
class Complexity:
    """What ``count_complexity`` found.

    Attributes:
        macs: multiply-adds for one image.
        params: parameters; the scale and shift of a frozen batch normalisation count, though they are buffers.
        rows: one per module, the model itself first; a module's row holds its children's.
        parts: MACs of a detector's parts (backbone, fpn, rpn, box_head, mask_head, keypoint_head), which sum
            to ``macs``; empty for other networks.
        input_size: (channels, H, W) as given.
        proposals, detections: regions of the box head, and of the mask and keypoint heads; 0 without parts.
        not_run: layers with weights that this count did not reach, such as an auxiliary classifier.
    """

    macs: int
    params: int
    rows: tuple[Row, ...]
    input_size: tuple[int, int, int]
    parts: dict[str, int] = field(default_factory=dict)
    proposals: int = 0
    detections: int = 0
    not_run: tuple[str, ...] = ()

    @property
    def basis(self) -> str:
        """One line that says what was counted, and for which input."""
        text = f"MACs: multiply-adds of convolutions and linear layers for 1 image of {self.input_size[1]} x "
        text += f"{self.input_size[2]}"
        if self.parts:
            text += f"; box head x {self.proposals} proposals"
            if heads := [name.removesuffix("_head") for name in ("mask_head", "keypoint_head") if name in self.parts]:
                text += f"; {' and '.join(heads)} head x {self.detections} detections"
        return text

    def table(self, depth: int = 2) -> str:
        """Aligned text: the modules that hold parameters, down to ``depth`` dots, then the basis of the count."""
        shown = [row for row in self.rows if _level(row.name) <= depth and (row.params or row.macs)]
        cells = [("module", "type", "MACs", "params")]
        cells += [
            ("  " * _level(row.name) + (row.name or "total"), row.type, _giga(row.macs), f"{row.params:,}")
            for row in shown
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        lines = [
            f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {macs:>{widths[2]}}  {params:>{widths[3]}}"
            for name, kind, macs, params in cells
        ]
        if self.not_run:
            more = f" and {len(self.not_run) - 3} more" if len(self.not_run) > 3 else ""
            lines.append(f"not run, so without MACs here: {', '.join(self.not_run[:3])}{more}")
        return "\n".join([*lines, self.basis])

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        return asdict(self) | {"basis": self.basis}


def count_complexity(
    model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224), *, proposals: int = 1000, detections: int = 100
) -> Complexity:
    """Count a network of images, or a Generalized R-CNN of torchvision or Detectron2.

    The model is untouched, its weights are not read, and train or eval mode makes no difference.

    Args:
        model: maps images (N, 3, H, W) to anything, or is a detector. A detector's image is taken at the given
            size, without the detector's resizing but with its padding (FPN: to a multiple of 32).
        input_size: (channels, H, W) in pixels.
        proposals: P of the box head; both stacks' FPN models keep 1000 a test image.
        detections: P of the mask and keypoint heads; at most 100 a test image in both stacks.

    Raises:
        InputError: a size or number is out of range, or the model takes no images.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a network (nn.Module), got {type(model).__name__}; build it first")
    size = tuple(input_size)
    if len(size) != 3 or not all(_is_count(number) and number > 0 for number in size):
        raise InputError(f"input_size: expected (channels, height, width), got {input_size}; write (3, 800, 800)")
    for name, number in (("proposals", proposals), ("detections", detections)):
        if not _is_count(number):
            raise InputError(
                f"{name}: expected a whole number, 0 or more, got {number!r}; both stacks use 1000 and 100"
            )
    counter = MacCounter(to_meta(model).eval())
    try:
        with torch.no_grad(), counter.flops:
            parts = _run(counter, size, proposals, detections)
    except InputError:
        raise
    except (RuntimeError, TypeError, AttributeError, ValueError, AssertionError, IndexError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"{type(model).__name__}: expected a network of images {size} or a Generalized R-CNN, got {reason}; "
            "try another input_size"
        ) from error
    if not parts:
        proposals = detections = 0
    rows, not_run = counter.rows()
    total = counter.total()
    rows = (Row("", rows[0].type, total, rows[0].params), *rows[1:])  # a detector is never called as a whole
    return Complexity(total, rows[0].params, rows, size, parts, proposals, detections, not_run)


def _run(counter: MacCounter, size: tuple[int, ...], proposals: int, detections: int) -> dict[str, int]:
    """Run the copy once; MACs by part for a detector, nothing for another network."""
    model = counter.model
    channels, height, width = size
    if not is_detector(model):
        model(torch.empty(1, channels, height, width, device="meta"))
        return {}
    stack = stack_of(model)
    multiple = stack.size_divisor(model)
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    image = torch.empty(1, channels, height, width, device="meta")
    macs, features = counter.measure(lambda: stack.feature_maps(model, image))
    parts = {"backbone": macs}
    resnet = stack.resnet_of(model)
    if resnet is not None:
        parts = {"backbone": counter.of(resnet), "fpn": macs - counter.of(resnet)}
    parts["rpn"] = counter.measure(lambda: stack.rpn_outputs(model, features))[0]
    for head in stack.heads_of(model):
        maps, side = stack.pooling_of(model, head)
        if maps[0] not in features:
            expected, got = (", ".join(map(str, names)) for names in (maps, features))
            raise InputError(f"{head} head: expected feature maps {expected} to pool, got {got}; name them alike")
        regions = proposals if head == "box" else detections
        pooled = torch.empty(regions, features[maps[0]].shape[1], *side, device="meta")  # (P, F, S, S)
        parts[f"{head}_head"] = counter.measure(partial(stack.head_outputs, model, head, pooled))[0]
    return parts


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _level(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.3f} G" if macs >= 1e6 else f"{macs:,}"

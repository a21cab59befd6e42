"""MACs and parameters of a network or a whole detector, in all and per module; nothing is computed.

A MAC is one multiply-add. Counted are convolutions (also transposed) and linear layers, as in the table of the
NORTON paper for dense ResNet-50 (4.09 G); normalisation, activations, pooling, interpolation, biases and RoI
pooling are not. The count runs on a copy on PyTorch's meta device, so any size takes seconds and no memory.

A detector's work depends on its input: backbone, neck and RPN head see one image, the box head ``proposals``
regions, the mask and keypoint heads ``detections`` regions. Both stacks' Generalized R-CNN are known by their
attributes (torchvision: ``rpn``; Detectron2: ``proposal_generator``), so neither is imported.

Legend: ``H, W`` image, ``P`` regions, ``F`` feature channels, ``S`` size of a pooled region.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..utils.errors import InputError

COUNTED = ("convolution", "_convolution", "addmm", "mm")  # ATen's names of convolutions and linear layers


@dataclass(frozen=True)
class Row:
    """MACs and parameters of one module with all that it holds; ``name`` is "" for the whole model."""

    name: str
    type: str
    macs: int
    params: int


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
    counter = _Counter(_to_meta(model).eval())
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


def count_parameters(model: nn.Module) -> int:
    """Parameters, each once, with the scale and shift of frozen batch normalisations."""
    tensors = {id(parameter): parameter.numel() for parameter in model.parameters()}
    for module in model.modules():
        if type(module).__name__.startswith("Frozen"):  # both stacks keep the two as buffers
            tensors |= {
                id(b): b.numel() for name, b in module.named_buffers(recurse=False) if name in ("weight", "bias")
            }
    return sum(tensors.values())


class _Counter:
    """MACs of every module of a model while it runs; inclusive of what the module holds."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.flops = FlopCounterMode(display=False)
        self.macs: dict[nn.Module, int] = {}
        for module in model.modules():
            starts: list[int] = []
            module.register_forward_pre_hook(self._enter(starts))
            module.register_forward_hook(self._leave(starts))

    def total(self) -> int:
        counts = self.flops.flop_counts["Global"]  # get_flop_counts() would copy every module's on each call
        return sum(flops for op, flops in counts.items() if op.__name__ in COUNTED) // 2

    def _enter(self, starts: list[int]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object) -> None:
            starts.append(self.total())

        return hook

    def _leave(self, starts: list[int]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            self.macs[module] = self.macs.get(module, 0) + self.total() - starts.pop()

        return hook

    def measure(self, run: Callable[[], Any]) -> tuple[int, Any]:
        """MACs of a call, and what it returns."""
        start = self.total()
        output = run()
        return self.total() - start, output

    def of(self, module: nn.Module) -> int:
        """MACs of a module; of its children where it is not called itself (Detectron2's ``mask_head.layers``)."""
        if module in self.macs:
            return self.macs[module]
        return sum(self.of(child) for child in module.children())

    def rows(self) -> tuple[tuple[Row, ...], tuple[str, ...]]:
        """A row per module, and the names of layers that were not called."""
        rows, not_run = [], []
        for name, module in self.model.named_modules():
            rows.append(Row(name, type(module).__name__, self.of(module), count_parameters(module)))
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and module not in self.macs:
                not_run.append(name)
        return tuple(rows), tuple(not_run)


def _run(counter: _Counter, size: tuple[int, ...], proposals: int, detections: int) -> dict[str, int]:
    """Run the copy once; MACs by part for a detector, nothing for another network."""
    model: Any = counter.model
    channels, height, width = size
    rpn = getattr(model, "rpn", None) or getattr(model, "proposal_generator", None)
    if rpn is None or not hasattr(model, "backbone") or not hasattr(model, "roi_heads"):
        model(torch.empty(1, channels, height, width, device="meta"))
        return {}
    padded_by = getattr(model, "transform", model.backbone)  # torchvision's transform, Detectron2's backbone
    multiple = max(1, getattr(padded_by, "size_divisible", 0), getattr(padded_by, "size_divisibility", 0))
    height, width = (-(-side // multiple) * multiple for side in (height, width))

    parts: dict[str, int] = {}
    image = torch.empty(1, channels, height, width, device="meta")
    parts["backbone"], features = counter.measure(lambda: model.backbone(image))
    features = {"0": features} if isinstance(features, Tensor) else features  # name -> (1, F, H/stride, W/stride)
    body = getattr(model.backbone, "body", None) or getattr(model.backbone, "bottom_up", None)
    if body is not None:
        parts = {"backbone": counter.of(body), "fpn": parts["backbone"] - counter.of(body)}
    levels = [features[name] for name in getattr(rpn, "in_features", features)]
    head = rpn.head if hasattr(rpn, "head") else rpn.rpn_head
    parts["rpn"] = counter.measure(lambda: head(levels))[0]
    parts |= _run_heads(counter, model.roi_heads, features, proposals, detections)
    return parts


def _run_heads(
    counter: _Counter, heads: Any, features: dict[str, Tensor], proposals: int, detections: int
) -> dict[str, int]:
    """Run the RoI heads on empty regions (P, F, S, S)."""
    parts = {}
    shared = getattr(heads, "res5", None)  # Detectron2's C4 models: one stage for box and mask regions
    for kind, regions in (("box", proposals), ("mask", detections), ("keypoint", detections)):
        head = getattr(heads, f"{kind}_head", None)
        if head is None and (kind != "box" or shared is None):
            continue
        pooler: Any = _first(heads, f"{kind}_roi_pool", f"{kind}_pooler", "pooler")
        names: Any = _first(pooler, "featmap_names") or _first(heads, f"{kind}_in_features", "in_features")
        if names[0] not in features:
            wanted, found = (", ".join(map(str, each)) for each in (names, features))
            raise InputError(f"{kind} head: expected feature maps {wanted} to pool, got {found}; name them alike")
        side = pooler.output_size
        rows, columns = (side, side) if isinstance(side, int) else side
        pooled = torch.empty(regions, features[names[0]].shape[1], rows, columns, device="meta")  # (P, F, S, S)
        call = partial(_run_head, kind, head, getattr(heads, f"{kind}_predictor", None), shared, pooled)
        parts[f"{kind}_head"] = counter.measure(call)[0]
    return parts


def _run_head(kind: str, head: Any, predictor: Any, shared: Any, pooled: Tensor) -> None:
    """Run one RoI head and its predictor on regions (P, F, S, S)."""
    if shared is not None:
        pooled = shared(pooled)
    if kind != "box":
        # Detectron2's heads take instances in forward and keep what is computed in layers()
        output = head.layers(pooled) if callable(getattr(head, "layers", None)) else head(pooled)
        if predictor is not None:
            predictor(output)
    elif head is None:
        predictor(pooled.mean(dim=(2, 3)))
    else:
        cascade = zip(head, predictor, strict=True) if isinstance(predictor, nn.ModuleList) else [(head, predictor)]
        for stage_head, stage_predictor in cascade:
            stage_predictor(stage_head(pooled))


def _first(holder: object, *names: str) -> object:
    """The first of the attributes that is there and set."""
    return next((value for name in names if (value := getattr(holder, name, None)) is not None), None)


def _to_meta(model: nn.Module) -> nn.Module:
    """A copy on the meta device: shapes and types, no values, so no memory either."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    replica = copy.deepcopy(model, memo)
    for module in replica.modules():
        if isinstance(module, nn.BatchNorm2d) or type(module).__name__.startswith("Frozen"):
            module.forward = _same  # no MACs, same shape, and half of the time
    return replica


def _same(x: Tensor) -> Tensor:
    return x


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _level(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.3f} G" if macs >= 1e6 else f"{macs:,}"

"""Inference of an R-CNN as one graph of plain tensor operations, the same for both detection stacks.

Detectron2 and torchvision wrap their tensors in lists of ``Boxes``, ``Instances`` and dicts, decode every anchor and
look at shapes in Python; none of that survives an exporter. ``DetectorGraph`` holds the same layers and does the same
arithmetic for one image, in a form that runs as it is in PyTorch and that ONNX and OpenVINO can take over with the
image size left open:

- deltas are decoded for the candidates alone, and anchors are computed from their index;
- the number of candidates of a level is fixed (small levels are filled up with what scores minus infinity);
- regions are sorted by level once, so that pooled features need not be put back in order.

Legend: ``A`` anchors of a cell, ``L`` levels, ``P`` proposals, ``N`` detections, ``C`` classes without background.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import nms

from ..models.fuse import fuse
from ..models.rcnn import PoolRule, RCNNParts
from ..models.stacks import stack_of
from ..utils.errors import InputError
from .roi_align import pool_regions

CLIP = math.log(1000 / 16)  # of the log size in box deltas, both stacks
FILL = -1e4  # objectness of what is not there


class DetectorGraph(nn.Module):
    """Image (1, 3, H, W) in 0..255, colours as the weights want them, -> boxes, scores, labels[, masks | heat maps].

    Boxes (N, 4) are xyxy in pixels of the image, scores (N,) fall, labels (N,) are those of the detector; masks
    (N, 1, S, S) are probabilities within their box, heat maps (N, K, S, S) logits of keypoints within it.

    Args:
        parts: of the detector; layers are shared with it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, parts: RCNNParts) -> None:
        super().__init__()
        self.backbone, self.rpn_head = parts.backbone, parts.rpn_head
        self.proposal_rule, self.box_rule, self.divisor = parts.proposal_rule, parts.box_rule, parts.divisor
        self.pools: dict[str, tuple[PoolRule, tuple[int, ...]]] = {}
        self.heads = nn.ModuleDict()
        for name, head in (("box", parts.box), ("mask", parts.mask), ("keypoint", parts.keypoint)):
            if head is not None:
                self.pools[name] = (head.pool, head.levels)
                self.heads[name] = head.layers
        for level, anchors in enumerate(parts.cell_anchors):
            self.register_buffer(f"anchors{level}", anchors.detach().clone().float(), persistent=False)
        for name, values in (("mean", parts.preprocessing.mean), ("std", parts.preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).float().view(1, 3, 1, 1), persistent=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what ``forward`` gives."""
        return output_names("mask" in self.heads, "keypoint" in self.heads)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = image.shape[2], image.shape[3]
        x = (image - self.mean) / self.std
        x = functional.pad(x, (0, -width % self.divisor, 0, -height % self.divisor))
        maps = list(self.backbone(x))
        limits = torch.stack([_scalar(width), _scalar(height)] * 2).to(x)  # (4,)
        proposals = self.propose(maps, limits, (x.shape[2], x.shape[3]))
        boxes, scores, labels = self.detect(maps, proposals, limits)
        results = [boxes, scores, labels]
        for name in ("mask", "keypoint"):
            if name in self.heads:
                pooled, order = self.pool(name, maps, boxes)
                logits = self.heads[name](pooled)[order.argsort()]
                results.append(_mask_of_class(logits, labels, self.box_rule.background) if name == "mask" else logits)
        return tuple(results)

    def propose(self, maps: list[Tensor], limits: Tensor, padded: tuple[int, int]) -> Tensor:
        """Proposals (P, 4) by falling score."""
        rule = self.proposal_rule
        boxes, scores, levels = [], [], []
        for level, (logits, deltas) in enumerate(zip(*self.rpn_head(maps), strict=True)):
            cells = getattr(self, f"anchors{level}")
            height, width = logits.shape[2], logits.shape[3]
            objectness = logits[0].float().permute(1, 2, 0).flatten()  # (H*W*A,)
            filled = torch.cat([objectness, objectness.new_full((rule.pre_nms,), FILL)])
            score, index = filled.topk(rule.pre_nms)
            index = torch.minimum(index, _scalar(len(cells) * height * width - 1).to(index))
            if rule.strides is None:
                stride = torch.stack([_scalar(padded[1] // width), _scalar(padded[0] // height)])
            else:
                stride = torch.tensor([rule.strides[level]] * 2)
            cell = torch.div(index, len(cells), rounding_mode="floor")
            row = torch.div(cell, width, rounding_mode="floor")
            at = (torch.stack([cell - row * width, row], 1).to(score) + rule.offset) * stride.to(score)  # (k, 2)
            anchors = cells[index - cell * len(cells)] + at.repeat(1, 2)
            chosen = deltas[0].float().unflatten(0, (len(cells), 4)).permute(2, 3, 0, 1).reshape(-1, 4)[index]
            boxes.append(decode(chosen, anchors, rule.weights))
            scores.append(score)
            levels.append(torch.full_like(score, level))
        box, score, level_of = clip(torch.cat(boxes), limits), torch.cat(scores), torch.cat(levels)
        lowest = math.log(rule.score / (1 - rule.score)) if rule.score > 0 else FILL / 2
        keep = torch.nonzero(_large(box, rule.min_size) & (score >= lowest))[:, 0]
        box, score, level_of = box[keep], score[keep], level_of[keep]
        kept = nms(box + _apart(level_of, limits), score, rule.nms)[: rule.post_nms]
        return box[kept]

    def pool(self, name: str, maps: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Features (P, C, S, S) of regions, sorted by level, and the order (P,) that sorted them."""
        rule, levels = self.pools[name]
        pyramid = [maps[level] for level in levels]
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        pixels, canonical = rule.canonical
        level = torch.floor(canonical + torch.log2(area.sqrt() / pixels + rule.eps[1]) + rule.eps[0])
        first = round(-math.log2(rule.scales[0]))
        level = (level - first).clamp(0, len(pyramid) - 1)
        members = [torch.nonzero(level == index)[:, 0] for index in range(len(pyramid))]
        pooled = []
        for map_, scale, index in zip(pyramid, rule.scales, members, strict=True):
            pooled.append(pool_regions(map_, boxes[index], rule.size, scale, rule.sampling, rule.aligned))
        return torch.cat(pooled), torch.cat(members)

    def detect(self, maps: list[Tensor], proposals: Tensor, limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the detections by falling score."""
        rule = self.box_rule
        pooled, order = self.pool("box", maps, proposals)
        proposals = proposals[order]
        logits, deltas = (output.float() for output in self.heads["box"](pooled))
        scores = logits.softmax(1)
        scores = scores[:, 1:] if rule.background == 0 else scores[:, :-1]
        first = 1 if rule.background == 0 else 0  # label of the first column
        candidates = torch.nonzero(~(scores <= rule.score))  # NaN is kept, to be refused and not lost
        region, label = candidates[:, 0], candidates[:, 1]
        score = scores[region, label]
        columns = deltas.unflatten(1, (-1, 4))  # (P, C or 1, 4)
        chosen = columns[region, torch.zeros_like(label) if rule.agnostic else label + first]
        boxes = clip(decode(chosen, proposals[region], rule.weights), limits)
        keep = torch.nonzero(_large(boxes, rule.min_size))[:, 0]
        boxes, score, label = boxes[keep], score[keep], label[keep]
        kept = nms(boxes + _apart(label, limits), score, rule.nms)[: rule.limit]
        return boxes[kept], score[kept], label[kept] + first


def output_names(masks: bool, keypoints: bool) -> tuple[str, ...]:
    """Names of the outputs of a graph with or without these heads."""
    return ("boxes", "scores", "labels", *(["masks"] if masks else []), *(["heatmaps"] if keypoints else []))


def to_graph(detector: nn.Module) -> DetectorGraph:
    """The graph of a Faster, Mask or Keypoint R-CNN of either stack; it shares the detector's layers.

    Raises:
        InputError: not such a detector, one with parts of another kind, in training mode, or with weights that are not
            finite.
    """
    stack = stack_of(detector)
    if any(module.training for module in detector.modules()):
        raise InputError("detector: expected eval mode, got training mode; call detector.eval() first")
    for name, tensor in detector.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{name}: expected finite weights, got NaN or infinity; use intact weights")
    return DetectorGraph(stack.parts_of(detector)).to(next(detector.parameters()).device).eval()


def fused_graph(detector: nn.Module) -> DetectorGraph:
    """The graph of ``to_graph`` with layers of its own in their deploy form."""
    graph = fuse(to_graph(detector))
    assert isinstance(graph, DetectorGraph)
    return graph


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes (K, 4) moved by deltas (K, 4) as (dx, dy, dw, dh), divided by ``weights`` (Girshick et al., 2014)."""
    deltas = deltas / deltas.new_tensor(weights)
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + 0.5 * size + deltas[:, :2] * size
    half = 0.5 * deltas[:, 2:].clamp(max=CLIP).exp() * size
    return torch.cat([centre - half, centre + half], 1)


def clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (K, 4) within (W, H, W, H)."""
    return torch.minimum(boxes.clamp(min=0), limits)


def _large(boxes: Tensor, size: float) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    return ((sides >= size) if size else (sides > 0)).all(1)


def _apart(group: Tensor, limits: Tensor) -> Tensor:
    """Offsets (K, 1) that keep boxes of different groups from overlapping."""
    return (group.to(limits) * (limits.max() + 1))[:, None]


def _mask_of_class(logits: Tensor, labels: Tensor, background: int) -> Tensor:
    """Probabilities (N, 1, S, S) of each detection's class, from logits (N, C, S, S) or class-agnostic (N, 1, S, S)."""
    if logits.shape[1] == 1 and background != 0:
        return logits.sigmoid()
    count = labels.shape[0]  # not len(): that would be a constant of the trace
    return logits[torch.arange(count, device=logits.device), labels][:, None].sigmoid()


def _scalar(value: int | Tensor) -> Tensor:
    """A number that is a tensor while a graph is traced, as a tensor."""
    return value if isinstance(value, Tensor) else torch.tensor(value)

"""A Faster, Mask or Keypoint R-CNN taken apart: its layers, and the rules by which boxes are chosen between them.

Neither stack's classes appear here: each stack says these things of its own detectors, and the deployment builds its
one graph from them.

Legend: ``L`` levels of the pyramid, ``A`` anchors of a cell, ``P`` regions, ``C`` classes without background, ``S``
sides of a pooled region.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .preprocessing import Preprocessing


@dataclass(frozen=True)
class ProposalRule:
    """How proposals are chosen.

    Attributes:
        pre_nms, post_nms: candidates of each level, and proposals of all.
        nms: IoU threshold.
        min_size: pixels; smaller ones are dropped (in torchvision; Detectron2 drops empty ones, 0).
        score: least objectness, a probability.
        weights: of the box deltas.
        strides: of the levels in pixels; ``None``: padded size // size of the map, rounded down, as in torchvision.
        offset: of the first anchor, in strides.
    """

    pre_nms: int
    post_nms: int
    nms: float
    min_size: float
    score: float = 0.0
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    strides: tuple[int, ...] | None = None
    offset: float = 0.0


@dataclass(frozen=True)
class BoxRule:
    """How detections are chosen.

    Attributes:
        score: threshold, exclusive.
        nms: IoU threshold within a class.
        limit: detections of an image.
        min_size: pixels, as in ``ProposalRule``.
        weights: of the box deltas.
        background: column of the background among the scores: 0 or -1.
        agnostic: one box for all classes.
    """

    score: float
    nms: float
    limit: int
    min_size: float
    weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    background: int = 0
    agnostic: bool = False


@dataclass(frozen=True)
class PoolRule:
    """RoIAlign over levels (Lin et al., 2017, equation 1).

    Attributes:
        size: of the pooled map.
        scales: of the levels' maps, falling powers of two.
        sampling: points per bin and direction; 0: as many as the bin has cells.
        aligned: half-pixel correction.
        canonical: (pixels, level) of the rule that gives a box its level.
        eps: added to the logarithm, and to what it is taken of.
    """

    size: tuple[int, int]
    scales: tuple[float, ...]
    sampling: int
    aligned: bool
    canonical: tuple[int, int] = (224, 4)
    eps: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Head:
    """A head with its pooling: ``layers`` takes regions (P, C, S, S) of those levels."""

    pool: PoolRule
    layers: nn.Module
    levels: tuple[int, ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class RCNNParts:
    """A detector's layers in the order of an inference, with the rules between them.

    Attributes:
        backbone: (1, 3, H, W) -> a list of L maps, finest first.
        rpn_head: maps -> objectness (1, A, H, W) and deltas (1, 4A, H, W) of each.
        cell_anchors: (A, 4) of each level, xyxy around the cell.
        proposal_rule, box_rule: how boxes are chosen after the RPN and after the box head.
        box: head -> scores (P, C+1), deltas.
        mask, keypoint: head -> logits; ``None`` where there is none.
        preprocessing: colour order and normalisation.
        divisor: sides are padded to multiples of it.
    """

    backbone: nn.Module
    rpn_head: nn.Module
    cell_anchors: Sequence[Tensor]
    proposal_rule: ProposalRule
    box: Head
    box_rule: BoxRule
    mask: Head | None
    keypoint: Head | None
    preprocessing: Preprocessing
    divisor: int


FeatureMaps = dict[str, Tensor]
"""Maps (N, C, H/stride, W/stride) of a backbone by name, the finest first."""


@dataclass(frozen=True)
class ImageBatch:
    """Images as a backbone takes them.

    Attributes:
        pixels: (N, 3, H, W), normalised, in the detector's colour order, padded to a common size.
        sizes: (height, width) of each image without its padding.
    """

    pixels: Tensor
    sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, pixels: Tensor) -> "ImageBatch":
        """A batch of pixels (N, 3, H, W) that are preprocessed already and have no padding."""
        return cls(pixels, [(pixels.shape[2], pixels.shape[3])] * len(pixels))


@dataclass(frozen=True)
class TestSettings:
    """How a detector is set up for inference.

    Attributes:
        min_size, max_size: pixels: pictures are resized until the short side is ``min_size``, unless the long one would
            then be above ``max_size``.
        proposals: that the box head gets of each image, at most.
    """

    min_size: int
    max_size: int
    proposals: int

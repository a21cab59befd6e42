"""Fit the factored layers around a detector's ResNet to the dense detector's outputs, on unlabelled images.

As in ``fit_resnet``: each layer gets what its predecessors in the *compressed* detector really put out, and is fitted
to what the *dense* one has at that place (``fitter``):

- ``CPConv2d``: CP in the metric of the output (``cp_output``), the bias from the means;
- ``LowRankLinear``: the principal components of the dense layer's outputs are the best subspace of its rank; the second
  factor is then solved from what the first puts out in the compressed detector.

RoI features of both detectors are pooled from the *dense* detector's proposals and detections, so that rows belong
together. Images go through the dense detector once and through the small one twice: for the neck, and, once that is
fitted, for all that reads it. Both run with their ResNet in its deploy form.

Legend: ``P`` regions, ``C`` channels, ``rows`` samples.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..decomposition.cp_output import flatten_weight
from ..decomposition.moments import Moments
from ..models.factorize import factored_layer, part_of
from ..models.fuse import fused_resnet
from ..models.layers import CPConv2d, LowRankLinear
from ..models.stacks import DetectionStack
from ..utils.errors import InputError
from ..utils.hooks import Inputs, listening
from ..utils.threads import on_threads
from .fitter import FitSettings, Rows, fit_conv, fit_low_rank
from .sampling import draw_positions, output_size, patches

FIT = FitSettings(shrinkage=0.3, sweeps=(3, 2))  # the shrinkage was found on photographs
HEADS = ("box", "mask", "keypoint")
HeadOf = Callable[[nn.Module, str], Callable[[Tensor], Any]]
Regions = dict[str, tuple[Tensor, Tensor]]
"""By head: boxes (P, 4) of an image, and what the dense detector pools of them (P, C, S, S)."""


@dataclass(frozen=True)
class AroundSettings:
    """What the layers around the ResNet are fitted on, and how.

    Attributes:
        rows: positions of each layer's outputs that are looked at, in all.
        regions: per image; of the box head, and a quarter of it of the others.
        fit: of each layer.
        seed: of the drawn positions.
    """

    rows: int = 16384
    regions: int = 64
    fit: FitSettings = FIT
    seed: int = 0


@torch.no_grad()
def fit_around(
    dense: nn.Module,
    small: nn.Module,
    names: Iterable[str],
    inputs: Sequence[Any],
    stack: DetectionStack,
    settings: AroundSettings | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Fit layers of ``small`` in place.

    Args:
        dense: the detector it was made from, in eval mode; as it was afterwards.
        small: has factored layers at ``names``, in eval mode.
        names: of the layers, as in the dense detector.
        inputs: unlabelled images, each as the detector takes it.
        stack: of both detectors.

    Returns:
        Squared error of each layer's output that is left, relative to its variance, by name.

    Raises:
        InputError: no images, or activations that are not finite; the layer is named.
    """
    if not len(inputs):
        raise InputError("calibration: expected images, got none; give some")
    fit = _Fit(dense, small, list(names), len(inputs), settings or AroundSettings())
    with fused_resnet(dense), fused_resnet(small):
        neck, rpn = fit.of("neck"), fit.of("rpn")
        heads = [head for head in HEADS if fit.of_head(head)]
        regions = fit.read_dense(stack, tqdm(inputs, "fit neck", unit="image", disable=not progress), neck, rpn, heads)
        fit.solve(neck)
        pooled: dict[str, Rows] = {head: [] for head in heads}
        # of several convolutions of an RPN each reads what the one before puts out once it is fitted
        walks = [[name] for name in rpn] or ([[]] if heads else [])
        for number, layers in enumerate(walks):
            bar = tqdm(inputs, "fit heads", unit="image", disable=not progress)
            fit.read_small(stack, bar, layers, [{}] * len(inputs) if number else regions, pooled)
            fit.solve(layers)
    for head, pairs in pooled.items():
        fit.walk_head(stack.head_layers, head, pairs)
    return fit.errors


class _Fit:
    """Moments of layers, what the dense detector has at them, and the errors left."""

    def __init__(
        self, dense: nn.Module, small: nn.Module, names: list[str], images: int, settings: AroundSettings
    ) -> None:
        self.dense, self.small, self.names, self.settings = dense, small, names, settings
        self.per_image = max(1, settings.rows // images)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.moments: dict[str, Moments] = {}
        # by layer, for each call of it: positions that were drawn, and the dense outputs there (rows, O)
        self.noted: dict[str, deque[tuple[Tensor, Tensor] | None]] = defaultdict(deque)
        self.errors: dict[str, float] = {}

    def of(self, part: str) -> list[str]:
        return [name for name in self.names if part_of(name) == part]

    def of_head(self, head: str) -> list[str]:
        return [name for name in self.names if name.startswith(f"roi_heads.{head}_head.")]

    def note(self, heard: Inputs) -> None:
        """Draw positions of what was heard at convolutions of the dense detector, and keep the outputs there."""
        for name, maps in heard.items():
            conv = self.dense.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            counts = [len(level) * level.shape[2] * level.shape[3] for level in maps]
            for level, count in zip(maps, counts, strict=True):  # several where a layer is used on each level
                if not count:
                    self.noted[name].append(None)
                    continue
                take = min(count, max(1, round(self.per_image * count / sum(counts))))
                grid = (len(level), *output_size(level, conv))
                positions = draw_positions(grid, take, self.generator).to(level.device)
                target = patches(level, conv, positions) @ flatten_weight(conv.weight).T
                self.noted[name].append((positions, target if conv.bias is None else target + conv.bias))

    def collect(self, heard: Inputs) -> None:
        """Turn what was heard at the same convolutions of the small detector into rows of moments."""
        for name, maps in heard.items():
            conv = self.dense.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            for level in maps:
                noted = self.noted[name].popleft()
                if noted is not None:
                    positions, target = noted
                    self.moments.setdefault(name, Moments(name)).add(patches(level, conv, positions), target)

    def solve(self, names: list[str]) -> None:
        """Fit convolutions to their moments."""
        for name in names:
            if name not in self.moments or self.moments[name].count < 2:
                continue  # it hardly ran: no regions, say
            moments = self.moments.pop(name).finish()
            layer = factored_layer(self.small.get_submodule(name))
            assert isinstance(layer, CPConv2d)
            if layer.bias is None:
                moments.uncentre()
            prior = self.dense.get_submodule(name).weight
            assert isinstance(prior, Tensor)
            self.errors[name] = fit_conv(layer, moments, prior, self.settings.fit).error

    def read_dense(
        self, stack: DetectionStack, inputs: Iterable[Any], neck: list[str], rpn: list[str], heads: list[str]
    ) -> list[Regions]:
        """Run the dense detector on images, and both on what the neck reads; regions for each head of each image and
        their pooled features (P, C, S, S).
        """
        with listening(self.dense, neck + rpn) as heard, listening(self.small, neck) as heard_small:

            def run(image: Any) -> tuple[Any, ...]:
                images, maps = stack.image_features(self.dense, [image])
                boxes: Any = stack.propose(self.dense, images, maps) if rpn or heads else None
                detections = stack.detect_boxes(self.dense, images, maps, boxes) if set(heads) - {"box"} else boxes
                if neck:
                    stack.image_features(self.small, [image])
                return images, maps, boxes, detections, heard(), heard_small()

            regions = []
            for images, maps, boxes, detections, dense_inputs, small_inputs in on_threads(run, inputs):
                self.note(dense_inputs)
                regions.append(self._choose(stack, heads, images, maps, boxes, detections))
                self.collect(small_inputs)
            return regions

    def _choose(
        self, stack: DetectionStack, heads: list[str], images: Any, maps: Any, boxes: Tensor, detections: Tensor
    ) -> Regions:
        """Proposals or detections of an image drawn for each head, and their features."""
        chosen = {}
        for head in heads:
            limit = self.settings.regions if head == "box" else max(1, self.settings.regions // 4)
            regions = boxes if head == "box" or not len(detections) else detections
            regions = regions[torch.randperm(len(regions), generator=self.generator)[:limit].to(regions.device)]
            if len(regions):
                chosen[head] = (regions, stack.pool(self.dense, head, images, maps, regions))
        return chosen

    def read_small(
        self,
        stack: DetectionStack,
        inputs: Iterable[Any],
        rpn: list[str],
        chosen: list[Regions],
        pooled: Mapping[str, Rows],
    ) -> None:
        """Run the small detector on images: rows of a convolution of the RPN, and features of the same regions."""
        with listening(self.small, rpn) as heard:

            def run(work: tuple[Any, Regions]) -> tuple[Inputs, dict[str, tuple[Tensor, Tensor]]]:
                images, maps = stack.image_features(self.small, [work[0]])
                if rpn:
                    stack.propose(self.small, images, maps)
                pooled_pairs = {
                    head: (dense_features, stack.pool(self.small, head, images, maps, regions))
                    for head, (regions, dense_features) in work[1].items()
                }
                return heard(), pooled_pairs

            for small_inputs, pairs in on_threads(run, zip(inputs, chosen, strict=True)):
                self.collect(small_inputs)
                for head, pair in pairs.items():
                    pooled[head].append(pair)

    def walk_head(self, head_of: HeadOf, head: str, pairs: Rows) -> None:
        """Fit the layers of a head one after the other; each run goes through the whole (small) head."""
        if not pairs:
            return
        for name in self.of_head(head):
            layer, rows = self.dense.get_submodule(name), []
            for dense, small in self._run_head(head_of, head, name, pairs):
                if isinstance(layer, nn.Linear):
                    rows.append((small[name][0], layer(dense[name][0])))
                else:
                    self.note(dense)
                    self.collect(small)
            if not isinstance(layer, nn.Linear):
                self.solve([name])
            elif sum(len(inputs) for inputs, _ in rows) > 1:
                low_rank = factored_layer(self.small.get_submodule(name))
                assert isinstance(low_rank, LowRankLinear)
                self.errors[name] = fit_low_rank(low_rank, name, layer, rows, self.settings.fit).error

    def _run_head(self, head_of: HeadOf, head: str, name: str, pairs: Rows) -> list[tuple[Inputs, Inputs]]:
        """What a layer of both detectors' heads reads of pairs of features."""
        with listening(self.dense, [name]) as hear, listening(self.small, [name]) as hear_small:

            def run(pair: tuple[Tensor, Tensor]) -> tuple[Inputs, Inputs]:
                head_of(self.dense, head)(pair[0])
                head_of(self.small, head)(pair[1])
                return hear(), hear_small()

            return list(on_threads(run, pairs))

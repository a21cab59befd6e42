"""Fit the factored layers around a detector's ResNet to the dense detector's outputs, on unlabelled images.

As in ``reconstruct``: each layer gets what its predecessors in the *compressed* detector really put out, and is fitted
to what the *dense* one has at that place, by least squares on the exact second moments:

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
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..decomposition.cp_output import fit_output, flatten_weight, weight_of
from ..decomposition.moments import Moments
from ..models.factorize import factored_layer, part_of
from ..models.fuse import fused_resnet
from ..models.layers import CPConv2d, LowRankLinear, factors_to_state
from ..utils.errors import InputError
from ..utils.threads import Heard, listening, on_threads
from .sampling import draw_positions, patches

SHRINKAGE = 0.3  # found on photographs: at few rows the fit would else be to these alone
HEADS = ("box", "mask", "keypoint")
HeadOf = Callable[[nn.Module, str], Callable[[Tensor], Any]]
Pairs = list[tuple[Tensor, Tensor]]
Regions = dict[str, tuple[Tensor, Tensor]]
"""By head: boxes (P, 4) of an image, and what the dense detector pools of them (P, C, S, S)."""


@dataclass(frozen=True)
class FitSettings:
    """How the layers around the ResNet are fitted.

    Attributes:
        rows: positions of each layer's outputs that are looked at, in all.
        regions: per image; of the box head, and a quarter of it of the others.
        ridge: how strongly solutions are drawn to the dense weights, see ``Calibration``.
        seed: of the drawn positions.
    """

    rows: int = 16384
    regions: int = 64
    ridge: float = 1e-2
    seed: int = 0


@torch.no_grad()
def fit_around(
    dense: nn.Module,
    small: nn.Module,
    names: Iterable[str],
    inputs: Sequence[Any],
    stack: ModuleType,
    settings: FitSettings | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Fit layers of ``small`` in place.

    Args:
        dense: the detector it was made from, in eval mode; as it was afterwards.
        small: has factored layers at ``names``, in eval mode.
        names: of the layers, as in the dense detector.
        inputs: unlabelled images, each as the detector takes it.
        stack: adapter of the detectors' stack (``d2.surgery`` or ``tv.surgery``).

    Returns:
        Squared error of each layer's output that is left, relative to its variance, by name.

    Raises:
        InputError: no images, or activations that are not finite; the layer is named.
    """
    if not len(inputs):
        raise InputError("calibration: expected images, got none; give some")
    fit = _Fit(dense, small, list(names), len(inputs), settings or FitSettings())
    with fused_resnet(dense), fused_resnet(small):
        neck, rpn = fit.of("neck"), fit.of("rpn")
        heads = [head for head in HEADS if fit.of_head(head)]
        regions = fit.read_dense(stack, tqdm(inputs, "fit neck", unit="image", disable=not progress), neck, rpn, heads)
        fit.solve(neck)
        pooled: dict[str, Pairs] = {head: [] for head in heads}
        # of several convolutions of an RPN each reads what the one before puts out once it is fitted
        walks = [[name] for name in rpn] or ([[]] if heads else [])
        for number, layers in enumerate(walks):
            bar = tqdm(inputs, "fit heads", unit="image", disable=not progress)
            fit.read_small(stack, bar, layers, [{}] * len(inputs) if number else regions, pooled)
            fit.solve(layers)
    for head, pairs in pooled.items():
        fit.walk_head(stack.head_of, head, pairs)
    return fit.errors


class _Fit:
    """Moments of layers, what the dense detector has at them, and the errors left."""

    def __init__(
        self, dense: nn.Module, small: nn.Module, names: list[str], images: int, settings: FitSettings
    ) -> None:
        self.dense, self.small, self.names, self.settings = dense, small, names, settings
        self.per_image = max(1, settings.rows // images)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.moments: dict[str, Moments] = {}
        # by layer, for each call of it: positions that were drawn, and the dense outputs there (rows, O)
        self.noted: dict[str, deque[tuple[Tensor, Tensor] | None]] = defaultdict(deque)
        self.errors: dict[str, float] = {}

    def share(self, moments: Moments) -> float:
        """Weight of the prior, see ``Moments.ridge``: more where there are few rows for the number of features."""
        return self.settings.ridge + SHRINKAGE * moments.xx.shape[0] / moments.rows

    def of(self, part: str) -> list[str]:
        return [name for name in self.names if part_of(name) == part]

    def of_head(self, head: str) -> list[str]:
        return [name for name in self.names if name.startswith(f"roi_heads.{head}_head.")]

    def note(self, heard: Heard) -> None:
        """Draw positions of what was heard at convolutions of the dense detector, and keep the outputs there."""
        for name, maps in heard.items():
            conv = self.dense.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            counts = [len(wide) * wide.shape[2] * wide.shape[3] for wide in maps]
            for wide, count in zip(maps, counts, strict=True):  # several where a layer is used on each level
                if not count:
                    self.noted[name].append(None)
                    continue
                take = min(count, max(1, round(self.per_image * count / sum(counts))))
                positions = draw_positions(wide, conv, take, self.generator)
                target = patches(wide, conv, positions) @ flatten_weight(conv.weight).T
                self.noted[name].append((positions, target if conv.bias is None else target + conv.bias))

    def collect(self, heard: Heard) -> None:
        """Turn what was heard at the same convolutions of the small detector into rows of moments."""
        for name, maps in heard.items():
            conv = self.dense.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            for narrow in maps:
                noted = self.noted[name].popleft()
                if noted is not None:
                    positions, target = noted
                    self.moments.setdefault(name, Moments(name)).add(patches(narrow, conv, positions), target)

    def solve(self, names: list[str]) -> None:
        """Fit convolutions to their moments."""
        for name in names:
            if name not in self.moments or self.moments[name].count < 2:
                continue  # it hardly ran: no regions, say
            moments, conv, layer = (
                self.moments.pop(name).finish(),
                self.dense.get_submodule(name),
                factored_layer(self.small.get_submodule(name)),
            )
            assert isinstance(layer, CPConv2d)
            if layer.bias is None:
                moments.uncentre()
            prior = flatten_weight(conv.weight).double()  # type: ignore[arg-type]
            sweeps = 3 if layer.rank == 1 else 2
            factors = fit_output(moments, layer.factors(), prior, self.share(moments), sweeps=sweeps)
            weight = weight_of(factors)
            state = {key: part.float() for key, part in factors_to_state(factors).items()}
            if layer.bias is not None:
                state["bias"] = (moments.mean_y - weight @ moments.mean_x).float()
            layer.load_state_dict(state)
            self.errors[name] = moments.error(weight)

    def read_dense(
        self, stack: ModuleType, inputs: Iterable[Any], neck: list[str], rpn: list[str], heads: list[str]
    ) -> list[Regions]:
        """Run the dense detector on images, and both on what the neck reads; regions for each head of each image and
        their pooled features (P, C, S, S).
        """
        with listening(self.dense, neck + rpn) as heard, listening(self.small, neck) as heard_small:

            def run(image: Any) -> tuple[Any, ...]:
                images, maps = stack.image_features(self.dense, [image])
                boxes: Any = stack.propose(self.dense, images, maps) if rpn or heads else None
                found = stack.detect(self.dense, images, maps, boxes) if set(heads) - {"box"} else boxes
                if neck:
                    stack.image_features(self.small, [image])
                return images, maps, boxes, found, heard(), heard_small()

            regions = []
            for images, maps, boxes, found, wide, narrow in on_threads(run, inputs):
                self.note(wide)
                regions.append(self._choose(stack, heads, images, maps, boxes, found))
                self.collect(narrow)
            return regions

    def _choose(
        self, stack: ModuleType, heads: list[str], images: Any, maps: Any, boxes: Tensor, found: Tensor
    ) -> Regions:
        """Proposals or detections of an image drawn for each head, and their features."""
        chosen = {}
        for head in heads:
            limit = self.settings.regions if head == "box" else max(1, self.settings.regions // 4)
            regions = boxes if head == "box" or not len(found) else found
            regions = regions[torch.randperm(len(regions), generator=self.generator)[:limit].to(regions.device)]
            if len(regions):
                chosen[head] = (regions, stack.pool(self.dense, head, images, maps, regions))
        return chosen

    def read_small(
        self,
        stack: ModuleType,
        inputs: Iterable[Any],
        rpn: list[str],
        chosen: list[Regions],
        pooled: Mapping[str, Pairs],
    ) -> None:
        """Run the small detector on images: rows of a convolution of the RPN, and features of the same regions."""
        with listening(self.small, rpn) as heard:

            def run(work: tuple[Any, Regions]) -> tuple[Heard, dict[str, tuple[Tensor, Tensor]]]:
                images, maps = stack.image_features(self.small, [work[0]])
                if rpn:
                    stack.propose(self.small, images, maps)
                own = {
                    head: (wide, stack.pool(self.small, head, images, maps, regions))
                    for head, (regions, wide) in work[1].items()
                }
                return heard(), own

            for narrow, pairs in on_threads(run, zip(inputs, chosen, strict=True)):
                self.collect(narrow)
                for head, pair in pairs.items():
                    pooled[head].append(pair)

    def walk_head(self, head_of: HeadOf, head: str, pairs: Pairs) -> None:
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
            if isinstance(layer, nn.Linear):
                self._fit_linear(name, layer, rows)
            else:
                self.solve([name])

    def _run_head(self, head_of: HeadOf, head: str, name: str, pairs: Pairs) -> list[tuple[Heard, Heard]]:
        """What a layer of both detectors' heads reads of pairs of features."""
        with listening(self.dense, [name]) as hear, listening(self.small, [name]) as hear_small:

            def run(pair: tuple[Tensor, Tensor]) -> tuple[Heard, Heard]:
                head_of(self.dense, head)(pair[0])
                head_of(self.small, head)(pair[1])
                return hear(), hear_small()

            return list(on_threads(run, pairs))

    def _fit_linear(self, name: str, linear: nn.Linear, rows: Pairs) -> None:
        """Fit the factors of a linear layer to what it reads in the small detector (rows, I), and what the dense one
        puts out (rows, O).
        """
        layer = factored_layer(self.small.get_submodule(name))
        assert isinstance(layer, LowRankLinear)
        target = torch.cat([y for _, y in rows]).double()  # (rows, O)
        if len(target) < 2:
            return
        if not target.isfinite().all():
            raise InputError(f"{name}: expected finite activations, got NaN or infinity; use intact weights")
        covariance = torch.cov(target.T)
        # where there are few rows, directions that they do not show are taken from the weight itself
        weight = linear.weight.double()
        energy = weight @ weight.T
        share = self.settings.ridge * covariance.diagonal().mean() / energy.diagonal().mean().clamp_min(1e-30)
        basis = torch.linalg.eigh(covariance + share * energy)[1][:, -layer.rank :]  # (O, r)
        layer.first.weight.copy_((basis.T @ weight).float())
        moments = Moments(name)
        for x, y in rows:
            moments.add(layer.first(x), y)
        moments.finish()
        second = moments.least_squares(basis, self.share(moments))
        layer.second.weight.copy_(second.float())
        if layer.second.bias is not None:
            layer.second.bias.copy_((moments.mean_y - second @ moments.mean_x).float())
        self.errors[name] = moments.error(second)

"""Fit the factored layers around a detector's ResNet to the dense detector's outputs, on unlabelled images.

As in ``reconstruct``: each layer gets what its predecessors in the *compressed* detector really put out, and is fitted
to what the *dense* one has at that place, by least squares on the exact second moments:

- ``CPConv2d``: CP in the metric of the output (``cp_output``), the bias from the means;
- ``LowRankLinear``: the principal components of the dense layer's outputs are the best subspace of its rank; the second
  factor is then solved from what the first puts out in the compressed detector.

RoI features of both detectors are pooled from the *dense* detector's proposals and detections, so that rows belong
together. The images are walked through twice: once for the neck, once for all that reads it.

Legend: ``P`` regions, ``C`` channels, ``rows`` samples.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .cp_output import fit_output, flatten_weight, weight_of
from .errors import InputError
from .layers import CPConv2d, LowRankLinear, factors_to_state
from .moments import Moments
from .reconstruct import patches
from .surgery import factored_layer, part_of

SHRINKAGE = 0.3  # found on photographs: at few rows the fit would else be to these alone
HEADS = ("box", "mask", "keypoint")
HeadOf = Callable[[nn.Module, str], Callable[[Tensor], Any]]


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
        dense: the detector it was made from, in eval mode; untouched.
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
    neck = fit.of("neck")
    if neck:
        for image in tqdm(inputs, "fit neck", unit="image", disable=not progress):
            with fit.listening(neck):
                for detector in (dense, small):
                    stack.image_features(detector, [image])
            fit.collect(neck)
        fit.solve(neck)
    rest = [name for name in fit.names if name not in neck]
    pooled: dict[str, list[tuple[Tensor, Tensor]]] = {head: [] for head in HEADS if fit.of_head(head)}
    if rest:
        for image in tqdm(inputs, "fit heads", unit="image", disable=not progress):
            fit.read_image(stack, image, pooled)
        rpn = fit.of("rpn")
        fit.solve(rpn[:1])
        for name in rpn[1:]:  # each reads what the one before puts out once it is fitted
            for image in inputs:
                fit.hear_rpn(stack, image, name)
            fit.solve([name])
    for head, pairs in pooled.items():
        fit.walk_head(stack.head_of, head, pairs)
    return fit.errors


class _Fit:
    """Inputs that were heard at layers of both detectors, their moments, and the errors left."""

    def __init__(
        self, dense: nn.Module, small: nn.Module, names: list[str], images: int, settings: FitSettings
    ) -> None:
        self.dense, self.small, self.names, self.settings = dense, small, names, settings
        self.per_image = max(1, settings.rows // images)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.moments: dict[str, Moments] = {}
        self.heard: dict[tuple[str, str], list[Tensor]] = {}
        self.errors: dict[str, float] = {}

    def share(self, moments: Moments) -> float:
        """Weight of the prior, see ``Moments.ridge``: more where there are few rows for the number of features."""
        return self.settings.ridge + SHRINKAGE * moments.xx.shape[0] / moments.rows

    def of(self, part: str) -> list[str]:
        return [name for name in self.names if part_of(name) == part]

    def of_head(self, head: str) -> list[str]:
        return [name for name in self.names if name.startswith(f"roi_heads.{head}_head.")]

    def listening(self, names: list[str]) -> "_Listening":
        return _Listening(self, names)

    def collect(self, names: list[str]) -> None:
        """Turn what was heard at convolutions into rows of moments."""
        for name in names:
            conv = self.dense.get_submodule(name)
            assert isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str)
            pairs = list(zip(self.heard[name, "dense"], self.heard[name, "small"], strict=True))
            cells = sum(len(wide) * wide.shape[2] * wide.shape[3] for wide, _ in pairs)
            for wide, narrow in pairs:  # several where a layer is used on each level
                count = len(wide) * wide.shape[2] * wide.shape[3]
                if not count:
                    continue
                take = min(count, max(1, round(self.per_image * count / max(1, cells))))
                height, width = _output_size(wide, conv)
                at = torch.randint(len(wide) * height * width, (take,), generator=self.generator).to(wide.device)
                positions = torch.stack([at // (height * width), at // width % height, at % width])
                window = (conv.kernel_size, conv.stride, conv.padding)
                target = patches(wide, positions, *window) @ flatten_weight(conv.weight).T
                self.moments.setdefault(name, Moments(name)).add(
                    patches(narrow, positions, *window), target if conv.bias is None else target + conv.bias
                )
        self.heard.clear()

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

    def read_image(self, stack: ModuleType, image: Any, pooled: dict[str, list[tuple[Tensor, Tensor]]]) -> None:
        """Moments of the RPN's convolution, and pooled features of both detectors, from one image."""
        rpn = self.of("rpn")[:1]
        images, wide = stack.image_features(self.dense, [image])
        narrow = stack.image_features(self.small, [image])[1]
        with self.listening(rpn):
            boxes = stack.propose(self.dense, images, wide)
            if rpn:
                stack.propose(self.small, images, narrow)
        if rpn:
            self.collect(rpn)
        if not pooled:
            return
        found = stack.detect(self.dense, images, wide, boxes) if set(pooled) - {"box"} else boxes
        for head, pairs in pooled.items():
            limit = self.settings.regions if head == "box" else max(1, self.settings.regions // 4)
            regions = boxes if head == "box" or not len(found) else found
            regions = regions[torch.randperm(len(regions), generator=self.generator)[:limit].to(regions.device)]
            if len(regions):
                both = (
                    stack.pool(detector, head, images, maps, regions)
                    for detector, maps in ((self.dense, wide), (self.small, narrow))
                )
                pairs.append(tuple(both))

    def hear_rpn(self, stack: ModuleType, image: Any, name: str) -> None:
        """Moments of one convolution of the RPN from one image."""
        with self.listening([name]):
            for detector in (self.dense, self.small):
                stack.propose(detector, *stack.image_features(detector, [image]))
        self.collect([name])

    def walk_head(self, head_of: HeadOf, head: str, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Fit the layers of a head one after the other; each run goes through the whole (small) head."""
        if not pairs:
            return
        for name in self.of_head(head):
            if isinstance(self.dense.get_submodule(name), nn.Linear):
                self._fit_linear(name, head, head_of, pairs)
                continue
            for pair in pairs:
                self.hear_head(name, head, head_of, pair)
                self.collect([name])
            self.solve([name])

    def hear_head(self, name: str, head: str, head_of: HeadOf, pair: tuple[Tensor, Tensor]) -> None:
        """Run a head of both detectors on pooled features of the same regions, listening at one layer."""
        with self.listening([name]):
            for detector, pooled in zip((self.dense, self.small), pair, strict=True):
                head_of(detector, head)(pooled)

    def _fit_linear(self, name: str, head: str, head_of: HeadOf, pairs: list[tuple[Tensor, Tensor]]) -> None:
        linear, layer = self.dense.get_submodule(name), factored_layer(self.small.get_submodule(name))
        assert isinstance(linear, nn.Linear) and isinstance(layer, LowRankLinear)
        inputs, targets = [], []
        for pair in pairs:
            self.hear_head(name, head, head_of, pair)
            targets.append(linear(self.heard[name, "dense"][0]))
            inputs.append(self.heard[name, "small"][0])
            self.heard.clear()
        target = torch.cat(targets).double()  # (rows, O)
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
        for x, y in zip(inputs, targets, strict=True):
            moments.add(layer.first(x), y)
        moments.finish()
        second = moments.least_squares(basis, self.share(moments))
        layer.second.weight.copy_(second.float())
        if layer.second.bias is not None:
            layer.second.bias.copy_((moments.mean_y - second @ moments.mean_x).float())
        self.errors[name] = moments.error(second)


class _Listening:
    """Context in which the inputs of layers of both detectors are kept."""

    def __init__(self, fit: _Fit, names: list[str]) -> None:
        self.fit, self.names, self.handles = fit, names, []  # type: ignore[var-annotated]

    def __enter__(self) -> None:
        for side, detector in (("dense", self.fit.dense), ("small", self.fit.small)):
            for name in self.names:
                heard = self.fit.heard.setdefault((name, side), [])
                module = detector.get_submodule(name)
                self.handles.append(module.register_forward_pre_hook(_keep(heard)))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _keep(heard: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _module, inputs: heard.append(inputs[0].detach())


def _output_size(maps: Tensor, conv: nn.Conv2d) -> tuple[int, int]:
    height, width = (
        (size + 2 * pad - kernel) // stride + 1  # type: ignore[operator]
        for size, pad, kernel, stride in zip(maps.shape[2:], conv.padding, conv.kernel_size, conv.stride, strict=True)
    )
    return height, width

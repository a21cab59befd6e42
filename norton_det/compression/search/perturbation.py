"""What a change inside a network does to its outputs: their squared error while the change is in place.

A *perturbation* is a context manager: within it a layer reads something else, or has other weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.hooks import hooked

Outputs = Callable[[], list[list[Tensor]]]
"""Runs a network on a few images and gives, for each of its ends, tensors of what it puts out."""

Perturbation = AbstractContextManager[None]


class Distortion:
    """Squared error of a network's outputs, relative to their variance, averaged over its ends."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self.reference = outputs()

    def under(self, perturbations: Sequence[Perturbation]) -> float:
        """The error with all of the perturbations in place; 2 at most for each tensor."""
        with ExitStack() as stack:
            for perturbation in perturbations:
                stack.enter_context(perturbation)
            perturbed = self.outputs()
        errors = []
        for end, reference in zip(perturbed, self.reference, strict=True):
            tensors = [
                float((y - x).square().sum() / (x - x.mean()).square().sum().clamp_min(1e-30))
                for y, x in zip(end, reference, strict=True)
                if x.numel()
            ]
            errors.append(sum(min(error, 2.0) for error in tensors) / max(1, len(tensors)))
        return sum(errors) / max(1, len(errors))


def predicted_inputs(module: nn.Module, projection: Tensor) -> Perturbation:
    """A convolution reads what the kept channels tell of its inputs (N, C, H, W), by a matrix (C, C)."""

    def predict(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mean = inputs[0].mean((0, 2, 3), keepdim=True)
        return (F.conv2d(inputs[0] - mean, projection[:, :, None, None]) + mean,)

    return hooked(inputs=[(module, predict)])


@contextmanager
def swapped_weights(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> Iterator[None]:
    """A layer has other weights and another bias."""
    dense = layer.weight, layer.bias
    layer.weight, layer.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
    try:
        yield
    finally:
        layer.weight, layer.bias = dense

"""What a change in a network does to its outputs: the squared error at its ends, with the change made for a while.

A change is a function that makes it and returns what takes it back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

Ends = Callable[[], list[list[Tensor]]]
Change = Callable[[], Callable[[], None]]


class Effect:
    """Squared error at the ends of a network, relative to their variance, with something changed in it."""

    def __init__(self, probe: Ends) -> None:
        self.probe = probe
        self.reference = probe()

    def of(self, changes: Sequence[Change]) -> float:
        with _all(changes):
            found = self.probe()
        errors = []
        for end, dense in zip(found, self.reference, strict=True):
            parts = [
                float((y - x).square().sum() / (x - x.mean()).square().sum().clamp_min(1e-30))
                for y, x in zip(end, dense, strict=True)
                if x.numel()
            ]
            errors.append(sum(min(part, 2.0) for part in parts) / max(1, len(parts)))
        return sum(errors) / max(1, len(errors))


@contextmanager
def _all(changes: Sequence[Change]) -> Iterator[None]:
    undo = [change() for change in changes]
    try:
        yield
    finally:
        for back in undo:
            back()


def projected(module: nn.Module, matrix: Tensor) -> Change:
    """Give a convolution what the kept channels tell of its inputs (N, C, H, W); matrix (C, C)."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mean = inputs[0].mean((0, 2, 3), keepdim=True)
        return (F.conv2d(inputs[0] - mean, matrix[:, :, None, None]) + mean,)

    return lambda: module.register_forward_pre_hook(hook).remove


def swapped(module: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> Change:
    """Other weights in a layer."""

    def change() -> Callable[[], None]:
        old = module.weight, module.bias

        def back() -> None:
            module.weight, module.bias = old

        module.weight, module.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))
        return back

    return change

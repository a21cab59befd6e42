"""Multiply-adds of every module of a network while it runs, on a copy without memory; and parameters."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

COUNTED = ("convolution", "_convolution", "addmm", "mm")  # ATen's names of convolutions and linear layers


@dataclass(frozen=True)
class Row:
    """MACs and parameters of one module with all that it holds; ``name`` is "" for the whole model."""

    name: str
    type: str
    macs: int
    params: int


def count_parameters(model: nn.Module) -> int:
    """Parameters, each once, with the scale and shift of frozen batch normalisations."""
    tensors = {id(parameter): parameter.numel() for parameter in model.parameters()}
    for module in model.modules():
        if type(module).__name__.startswith("Frozen"):  # both stacks keep the two as buffers
            tensors |= {
                id(b): b.numel() for name, b in module.named_buffers(recurse=False) if name in ("weight", "bias")
            }
    return sum(tensors.values())


class MacCounter:
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


def to_meta(model: nn.Module) -> nn.Module:
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

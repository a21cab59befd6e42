"""Forward hooks for as long as a block runs: they are taken off whatever happens in it."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

Inputs = dict[str, list[Tensor]]
"""First inputs of layers by name, one of each call."""

InputHook = Callable[[nn.Module, tuple[Any, ...]], Any]
OutputHook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


@contextmanager
def hooked(
    inputs: Iterable[tuple[nn.Module, InputHook]] = (), outputs: Iterable[tuple[nn.Module, OutputHook]] = ()
) -> Iterator[None]:
    """Call functions on what modules read and put out, within the block.

    Args:
        inputs: modules and their forward pre-hooks, ``hook(module, inputs)``; it may return other inputs.
        outputs: modules and their forward hooks, ``hook(module, inputs, output)``; it may return another output.
    """
    with ExitStack() as handles:
        for module, before in inputs:
            handles.enter_context(module.register_forward_pre_hook(before))
        for module, after in outputs:
            handles.enter_context(module.register_forward_hook(after))
        yield


@contextmanager
def listening(module: nn.Module, names: Sequence[str]) -> Iterator[Callable[[], Inputs]]:
    """Keep the inputs of layers inside a module, apart for each thread.

    Yields a function that gives what the layers have read on the thread that calls it, and forgets it.
    """
    of_this_thread = threading.local()

    def keep(name: str) -> InputHook:
        return lambda _module, inputs: vars(of_this_thread).setdefault(name, []).append(inputs[0].detach())

    def take() -> Inputs:
        return {name: vars(of_this_thread).pop(name, []) for name in names}

    with hooked(inputs=[(module.get_submodule(name), keep(name)) for name in names]):
        yield take

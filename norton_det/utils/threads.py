"""The same bits on any number of threads: each operation runs on one, and threads share independent pieces of work.

Inside an operation PyTorch's threads share whatever suits their number: sums of products (MKL, LAPACK), blocks of a
convolution (oneDNN), rows of a reduction. So its rounding depends on how many there are. In ``one_thread`` it does
not, and ``on_threads`` takes the others to other pieces: batches, filters, blocks of a matrix. What the pieces are
must not depend on the number of threads.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")
Result = TypeVar("Result")
Heard = dict[str, list[Tensor]]
"""Inputs of layers by name, one of each call."""

Hear = Callable[[], Heard]

_local = threading.local()  # threads: how many ``on_threads`` may take; absent outside of ``one_thread``


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on the CPU with one thread, afterwards with as many as before; also a decorator."""
    threads, outer = torch.get_num_threads(), getattr(_local, "threads", None)
    _local.threads = outer or threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _local.threads = outer
        torch.set_num_threads(threads)


def on_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``function`` of each item, in order; within ``one_thread`` on as many threads as PyTorch had before.

    Items are taken, here, only as many ahead as there are threads, so that not all results are held at once.
    ``function`` runs elsewhere: it must draw no random numbers, and change nothing that another item's call reads.
    """
    workers = getattr(_local, "threads", None) or 1
    if workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers, "norton_det", _begin, (torch.is_grad_enabled(),)) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def listening(module: nn.Module, names: Sequence[str]) -> Iterator[Hear]:
    """Keep the inputs of layers inside a module, apart for each thread.

    Yields a function that gives what the layers have read on the thread that calls it, and forgets it.
    """
    own = threading.local()

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: vars(own).setdefault(name, []).append(inputs[0].detach())

    def hear() -> Heard:
        return {name: vars(own).pop(name, []) for name in names}

    handles = [module.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    try:
        yield hear
    finally:
        for handle in handles:
            handle.remove()


def _begin(grad: bool) -> None:
    """A thread of the pool: PyTorch's settings are each thread's own."""
    _local.threads = 1
    torch.set_num_threads(1)
    torch.set_grad_enabled(grad)

"""The same bits on any number of threads: each operation runs on one, and threads share independent pieces of work.

Inside an operation PyTorch's threads share whatever suits their number: sums of products (MKL, LAPACK), blocks of a
convolution (oneDNN), rows of a reduction. So its rounding depends on how many there are. In ``one_thread`` it does
not, and ``on_threads`` takes the others to other pieces: batches, filters, blocks of a matrix. What the pieces are
must not depend on the number of threads.

PyTorch's number of threads is each thread's own. Its setter also sets what threads begin with that have not run an
operation yet; here that is put back at once, so that other threads of the process keep theirs. (One whose very first
operation falls into that moment, when a block or its pool begins, gets one thread.)
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_setting = threading.Lock()
# of a thread: ``threads``, how many ``on_threads`` may take, absent outside of ``one_thread``; ``pool``, those taken
_local = threading.local()


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on the CPU with one thread, afterwards with as many as before; also a decorator.

    It holds for the thread that enters it; others, of the same process, keep the number that they have.
    """
    if getattr(_local, "threads", None):  # within another one, or on a thread of its pool
        yield
        return
    before = _set_threads_here(1)
    _local.threads, _local.pool = before, None
    try:
        yield
    finally:
        if _local.pool:
            _local.pool.shutdown()
        _local.threads = _local.pool = None
        _set_threads_here(before)


def on_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``function`` of each item, in order; within ``one_thread`` on as many threads as PyTorch had before.

    Items are taken, here, only as many ahead as there are threads, so that not all results are held at once.
    ``function`` runs elsewhere: it must draw no random numbers, and change nothing that another item's call reads.
    """
    workers = getattr(_local, "threads", None) or 1
    if workers == 1:
        yield from map(function, items)
        return
    if _local.pool is None:
        _local.pool = _make_pool(workers)
    pool: ThreadPoolExecutor = _local.pool
    grad = torch.is_grad_enabled()  # each thread's own too

    def run(item: Item) -> Result:
        with torch.set_grad_enabled(grad):
            return function(item)

    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(run, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


def _make_pool(workers: int) -> ThreadPoolExecutor:
    """A pool whose threads have all begun."""
    pool, begun = ThreadPoolExecutor(workers, "norton_det", _begin), threading.Barrier(workers)
    wait([pool.submit(begun.wait) for _ in range(workers)])
    return pool


def _begin() -> None:
    """Prepare a thread of the pool: its operations run on one thread, and it takes no others."""
    _local.threads = 1
    _set_threads_here(1)


def _set_threads_here(number: int) -> int:
    """Set PyTorch's number of threads on this thread alone, so that what new threads begin with stays.

    Returns:
        What it was.
    """
    with _setting:  # asking sets what new threads begin with, too, the first time on a thread
        before = torch.get_num_threads()
        if before != number:
            with ThreadPoolExecutor(1) as probe:
                default = probe.submit(torch.get_num_threads).result()
                torch.set_num_threads(number)
                probe.submit(torch.set_num_threads, default).result()
    return before

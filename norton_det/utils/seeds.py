"""Random numbers that follow from numbers: a seed, an epoch, the place of an image."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*numbers: int) -> None:
    """Random numbers of Python, NumPy and PyTorch follow from these numbers of 0 or more."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """``seed_all`` for the block; afterwards random numbers of the CPU go on as before it."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(*numbers)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)

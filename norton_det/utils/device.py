"""Devices by name, refused before long work if they are not there."""

import torch

from .errors import InputError, first_line


def default_device() -> str:
    """cuda where there is one, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> str:
    """The name of a device on which tensors can be made.

    Raises:
        InputError: PyTorch does not know it, or this machine has none.
    """
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        reason = first_line(error, 100)
        raise InputError(f"device: expected one of this machine, such as cpu, got {name!r} ({reason})") from None
    return name

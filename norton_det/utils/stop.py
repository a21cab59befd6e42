"""SIGINT and SIGTERM while something is trained: it ends soon, at a moment when its state is whole and can be saved."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn

from .errors import InputError, first_line

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has ended the work; ``number`` is the signal's, the message what was saved."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


def remember_statistics(model: nn.Module) -> Callable[[], None]:
    """Remember the statistics of normalisation layers that are in training; returns a function that restores them."""
    kinds = (nn.modules.batchnorm._NormBase,)
    training = [module for module in model.modules() if isinstance(module, kinds) and module.training]
    remembered = [(buffer, buffer.clone()) for module in training for buffer in module.buffers()]

    def restore() -> None:
        with torch.no_grad():
            for buffer, value in remembered:
                buffer.copy_(value)

    return restore


class StopOnSignal:
    """Raises ``Interrupted`` for the first signal that comes while the block runs, but not between ``hold`` and
    ``release``; later signals are left unheard, so that saving is not cut off.

    Only in the main thread, where Python hears signals; elsewhere it does nothing. Forked processes that read data
    leave Ctrl-C to their parent.

    Attributes:
        number: of the signal that came; 0 for none.
        held: whether it would wait.
    """

    def __init__(self) -> None:
        self.number = 0
        self.held = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """Let signals wait: from here on the state is not whole."""
        self.held = True

    def release(self) -> None:
        """The state is whole again; what was waiting is raised."""
        self.held = False
        if self.number:
            raise Interrupted(self.number)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        first, self.number = not self.number, self.number or number
        if first and not self.held:
            raise Interrupted(number)


def run_kept(stop: StopOnSignal, run: Callable[[], Any], keep: Callable[[], str], mend: str) -> Any:
    """Run a training; what ends it early is one line, with what is kept of it.

    Args:
        stop: hears signals meanwhile.
        run: the training.
        keep: saves the last whole state, and says what became of it.
        mend: what to do where a process that reads images was killed for want of memory.

    Raises:
        Interrupted: by SIGINT or SIGTERM.
        InputError: of the run, or a process that reads images ended.
    """
    with stop:
        try:
            return run()
        except Interrupted as error:
            raise Interrupted(error.number, keep()) from None
        except InputError as error:
            raise InputError(f"{error} ({keep()})") from None
        except (RuntimeError, ConnectionError, EOFError) as error:
            if stop.number:  # what a signal looks like to a process that waited for another
                raise Interrupted(stop.number, keep()) from None
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"a process that reads images ended ({first_line(error)}); {mend} where memory is short ({keep()})"
            ) from None

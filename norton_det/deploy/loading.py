"""What runs from what a user names: a detector of either stack from a config, a file of weights, or both; a predictor
from these or from an exported file."""

from typing import Any

from torch import nn

from ..checkpoint.opened import open_weights, reading_once
from ..checkpoint.sources import local
from ..models.stacks import stack_named
from ..utils.errors import InputError
from .native import NativePredictor
from .predictor import Predictor

EXPORTED = (".xml", ".onnx")


def load_detector(weights: str = "", config: str | None = None, opts: list[str] | tuple[str, ...] = ()) -> nn.Module:
    """A detector in eval mode; what it is, its labels and its sizes are taken from its file.

    Args:
        weights: its file, or ``zoo://NAME``; empty for a fresh detector of ``config``.
        config: of a Detectron2 detector (a path, or a name in configs/), for files that do not say enough, or to say
            otherwise.
        opts: ``KEY VALUE`` pairs that change the config of a Detectron2 detector.

    Raises:
        InputError: neither, no such file, or one that does not fit.
    """
    weights = str(local(weights)) if weights else weights
    if config is not None:
        return stack_named("detectron2").load_detector(weights, config, opts)
    if not weights:
        raise InputError("expected a detector; give --weights FILE, --config FILE, or both")
    with reading_once():
        return stack_named(stack_of_file(weights)).load_detector(weights, None, opts)


def stack_of_file(weights: str) -> str:
    """Whose detector a file holds: a name of ``STACKS``.

    Raises:
        InputError: it holds none.
    """
    opened = open_weights(weights)
    if opened.family is not None:
        raise InputError(
            f"{weights}: expected a detector of torchvision or Detectron2, got {opened.family.name}; "
            f"{opened.family.mend}"
        )
    if not opened.stack:
        raise InputError(
            f"{weights}: expected a detector, got a ResNet alone ({opened.kind}); give the file of a detector"
        )
    return opened.stack


def load_predictor(
    weights: str,
    config: str | None = None,
    opts: list[str] | tuple[str, ...] = (),
    *,
    precision: str | None = None,
    min_size: int | None = None,
    threads: int | None = None,
    color: str = "RGB",
    eager: bool = False,
) -> Predictor | NativePredictor:
    """One call for a detector, whatever it runs in.

    Args:
        weights, config, opts: an exported ``.xml`` or ``.onnx`` file alone, or see ``load_detector``.
        precision: f32 or bf16; by default what the file says.
        min_size: pixels of the input's short side, of a detector in PyTorch; 0 leaves pictures at their size.
        threads: of the CPU, of an exported file.
        color: order of the pictures given: RGB or BGR.
        eager: run a detector as its own stack does, not in its deploy form.

    Raises:
        InputError: see ``load_detector`` and ``Predictor``; an option that does not go with the kind of weights.
    """
    if weights.endswith(EXPORTED):
        if config or min_size is not None or opts or eager:
            raise InputError(f"{weights}: expected no config, size or eager beside an exported file; it has its own")
        return Predictor(weights, color=color, precision=precision, threads=threads)
    if threads:
        raise InputError("--threads: expected with .xml and .onnx alone; set OMP_NUM_THREADS for PyTorch")
    detector = load_detector(weights, config, opts)
    options: dict[str, Any] = {} if min_size is None else {"min_size": min_size}
    if eager:
        if precision not in (None, "f32"):
            raise InputError(
                f"--precision: expected f32 for a detector that runs eagerly, got {precision}; leave it out"
            )
        return NativePredictor(detector, color=color, **options)
    return Predictor(detector, color=color, precision=precision, **options)

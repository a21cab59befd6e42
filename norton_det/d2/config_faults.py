"""What is left for Detectron2 to assert on: an error while it builds or takes its first step becomes one line that
names the keys it read.

Only errors that are raised in Detectron2, or in a library that it calls: those of norton_det's own modules and of a
user's are bugs, and stay what they are.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import detectron2

from ..utils.errors import InputError, first_line

DETECTRON2 = Path(detectron2.__file__).resolve().parent
LIBRARIES = (str(DETECTRON2.parent), sys.base_prefix, sys.prefix)
KEYS = {  # by the beginning of a module's path in Detectron2; the first that fits
    "modeling/anchor_generator": "MODEL.ANCHOR_GENERATOR and the IN_FEATURES",
    "modeling/backbone": "MODEL.BACKBONE, MODEL.RESNETS and MODEL.FPN",
    "modeling/proposal_generator": "MODEL.PROPOSAL_GENERATOR and MODEL.RPN",
    "modeling/roi_heads": "MODEL.ROI_HEADS and the ROI_*_HEAD",
    "modeling/poolers": "the POOLER_* of the ROI_*_HEAD",
    "modeling/meta_arch": "MODEL.META_ARCHITECTURE, its node and DATASETS",
    "modeling": "MODEL",
    "layers": "the NORM and DEFORM_* of MODEL",
    "solver": "SOLVER",
    "data": "DATASETS, DATALOADER and INPUT",
    "evaluation": "DATASETS.TEST and TEST",
}
ERRORS = (AssertionError, LookupError, ValueError, TypeError, AttributeError, NotImplementedError, ZeroDivisionError)


@contextmanager
def naming_keys(*more: type[Exception]) -> Iterator[None]:
    """An error of Detectron2's in the block becomes an ``InputError`` that names keys of the config.

    Args:
        more: kinds of errors beside the usual ones.

    Raises:
        InputError: with the error that it came from as its cause.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, ERRORS + more):
            raise
        if "more than 1 value per channel" in str(error):  # of batch normalisation, in anybody's layers
            raise InputError(
                "INPUT.MIN_SIZE_TRAIN: expected pictures that leave batch normalisation more than one value, got "
                "smaller ones; enlarge it, or SOLVER.IMS_PER_BATCH, or set MODEL.RESNETS.NORM FrozenBN"
            ) from error
        if (module := _module(error.__traceback__)) is None:
            raise
        keys = next((keys for start, keys in KEYS.items() if module.startswith(start)), "the config")
        said = first_line(error, 200) if str(error) else "an assertion"
        raise InputError(
            f"config: expected values that Detectron2 can use, got {type(error).__name__} in its {module} ({said}); "
            f"look at {keys}"
        ) from error


def _module(trace: TracebackType | None) -> str | None:
    """The module of Detectron2 that an error was raised in; ``None`` where it is of other code."""
    for frame in reversed(traceback.extract_tb(trace)):
        path = Path(frame.filename)
        if path.is_relative_to(DETECTRON2):
            return path.relative_to(DETECTRON2).as_posix()
        if not str(path).startswith(LIBRARIES) and not frame.filename.startswith("<"):
            return None
    return None

"""The detectors that a user names for the demo, loaded; those of `make demo` where none is named."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..deploy.loading import EXPORTED, load_predictor
from ..deploy.native import NativePredictor
from ..deploy.predictor import Predictor
from ..utils.errors import InputError

DEMO_CONFIG, DEMO = "quick_schedules/demo_faster_rcnn.yaml", Path("output/demo")


@dataclass(frozen=True)
class DetectorSource:
    """Where a detector to show comes from, and how it is to be called.

    Attributes:
        weights: its file; empty for a fresh one of the config.
        config: of a Detectron2 detector in PyTorch; does not matter to an exported file.
        name: for the user; by default that of the file.
        eager: as its own stack runs it.
    """

    weights: str
    config: str | None = None
    name: str = ""
    eager: bool = False

    @property
    def title(self) -> str:
        """The name, or that of the file, or of its folder where the file's says nothing."""
        path = Path(self.weights or self.config or "detector")
        unsaying = path.stem.startswith("model_") and path.parent.name
        return self.name or (path.parent.name if unsaying else path.stem)

    @property
    def exported(self) -> bool:
        """Whether it is a file of norton-det export."""
        return self.weights.endswith(EXPORTED)


def demo_detectors() -> list[DetectorSource]:
    """The dense and the compressed detector that `make demo` trained.

    Raises:
        InputError: they are not there.
    """
    sources = [DetectorSource(str(DEMO / name / "model_final.pth"), DEMO_CONFIG, name) for name in ("dense", "norton")]
    for source in sources:
        if not Path(source.weights).is_file():
            raise InputError(
                f"--weights: expected a detector, got none, and {source.weights} is not there; run: make demo"
            )
    return sources


def load_predictors(
    sources: Sequence[DetectorSource],
    *,
    opts: Sequence[str] = (),
    precision: str | None = None,
    min_size: int | None = None,
    threads: int | None = None,
    color: str = "RGB",
) -> list[Predictor | NativePredictor]:
    """Predictors of all; each option goes to those that it is for (see ``load_predictor``).

    Raises:
        InputError: an option that is for none of them, or see ``load_predictor``.
    """
    exported, pytorch = [source.exported for source in sources], [not source.exported for source in sources]
    deployed = [not source.eager for source in sources]
    for asked, takes_it, option, expected in (
        (threads, exported, "--threads", "an exported file"),
        (min_size is not None, pytorch, "--min-size", "a detector in PyTorch"),
        (opts, pytorch, "--opts", "a detector in PyTorch"),
        (any(source.config for source in sources), pytorch, "--config-file", "a detector in PyTorch"),
        (precision, deployed, "--precision", "a detector that does not run eagerly"),
    ):
        if asked and not any(takes_it):
            raise InputError(f"{option}: expected {expected}, got none; leave it out")
    loggers = [logging.getLogger(f"norton_det.d2.{module}") for module in ("build", "agreement")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)  # one config may serve a dense and a compressed detector
    try:
        return [
            load_predictor(
                source.weights,
                None if source.exported else source.config,
                () if source.exported else tuple(opts),
                precision=None if source.eager else precision,
                min_size=None if source.exported else min_size,
                threads=threads if source.exported else None,
                color=color,
                eager=source.eager,
            )
            for source in sources
        ]
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

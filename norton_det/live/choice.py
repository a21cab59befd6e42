"""The detectors that a user names for the demo, loaded; those of `make demo` where none is named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..deploy.loading import EXPORTED, load_predictor
from ..deploy.native import NativePredictor
from ..deploy.predictor import Predictor
from ..utils.errors import InputError

DEMO_CONFIG, DEMO = "quick_schedules/demo_faster_rcnn.yaml", Path("output/demo")


@dataclass(frozen=True)
class Choice:
    """A detector to show.

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


def demo_choices() -> list[Choice]:
    """The dense and the compressed detector that `make demo` trained.

    Raises:
        InputError: they are not there.
    """
    found = [Choice(str(DEMO / name / "model_final.pth"), DEMO_CONFIG, name) for name in ("dense", "norton")]
    for choice in found:
        if not Path(choice.weights).is_file():
            raise InputError(
                f"--weights: expected a detector, got none, and {choice.weights} is not there; run: make demo"
            )
    return found


def load_choices(
    choices: Sequence[Choice],
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
    exported, pytorch = [each.exported for each in choices], [not each.exported for each in choices]
    native = [each.eager for each in choices]
    for given, fitting, option, what in (
        (threads, exported, "--threads", "an exported file"),
        (min_size, pytorch, "--min-size", "a detector in PyTorch"),
        (opts, pytorch, "--opts", "a detector in PyTorch"),
        (any(each.config for each in choices), pytorch, "--config-file", "a detector in PyTorch"),
        (precision, [not each for each in native], "--precision", "a detector that does not run eagerly"),
    ):
        if given and not any(fitting):
            raise InputError(f"{option}: expected {what}, got none; leave it out")
    found = []
    for each in choices:
        own: dict[str, Any] = {"threads": threads} if each.exported else {"min_size": min_size}
        config, words = (None, ()) if each.exported else (each.config, tuple(opts))
        own["precision"] = None if each.eager else precision
        found.append(load_predictor(each.weights, config, words, color=color, eager=each.eager, **own))
    return found

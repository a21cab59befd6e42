"""The detectors that a user names for the demo, or those of `make demo` where none is named."""

from pathlib import Path

from ..errors import InputError

DEMO_CONFIG, DEMO = "quick_schedules/demo_faster_rcnn.yaml", Path("output/demo")


def demo_detectors() -> dict[str, str]:
    """Weights of the dense and of the compressed detector that `make demo` trained, for ``DEMO_CONFIG``.

    Raises:
        InputError: they are not there.
    """
    files = {name: DEMO / name / "model_final.pth" for name in ("dense", "norton")}
    for file in files.values():
        if not file.is_file():
            raise InputError(f"--weights: expected a detector, got none, and {file} is not there; run: make demo")
    return {name: str(file) for name, file in files.items()}


def title(weights: str, config: str | None) -> str:
    """A short name of a detector: that of its file, or of its folder where the file's says nothing."""
    path = Path(weights or config or "detector")
    return path.parent.name if path.stem.startswith("model_") and path.parent.name else path.stem

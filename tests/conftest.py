"""Fixtures that several test modules share: real data and weights where they are at hand, a seed."""

import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from tests import REPOSITORY

# the same examples each time, and no time limit each: a busy machine must not fail a test
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
# other examples each time, and three times as many
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("NORTON_DET_EXAMPLES", "repeatable"))


def _find_shared() -> Path | None:
    """The folder with ``data/`` and ``weights/``: ``NORTON_DET_DATA``, else ``shared`` beside the repository."""
    named = os.environ.get("NORTON_DET_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    return folder if (folder / "data").is_dir() and (folder / "weights").is_dir() else None


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights; read-only."""
    folder = _find_shared()
    if folder is None:
        pytest.skip("no real data: set NORTON_DET_DATA to the folder that holds data/ and weights/")
    return folder


@pytest.fixture(scope="session")
def real_weights_path(shared: Path) -> Path:
    """The file of a trained ResNet-50 of 10 classes, torchvision's names, float16."""
    file = shared / "weights" / "resnet50_imagenette.safetensors"
    if not file.is_file():
        pytest.skip(f"no real weights: {file.name} is not in {file.parent}")
    return file


@pytest.fixture(scope="session")
def real_weights(real_weights_path: Path) -> dict[str, torch.Tensor]:
    """The trained ResNet-50's state dict in float32; do not change it in place."""
    from norton_det.checkpoint.checkpoint import read_tensors

    tensors = read_tensors(real_weights_path)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def quick_search() -> Iterator[None]:
    """Searches of whole detectors with fewer ranks to choose from, told by fewer filters and smaller crops."""
    from norton_det.compression.search import error_curves, problem

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(error_curves, "RANKS", (1,))
        patch.setattr(error_curves, "FILTERS", 4)
        for name, value in (("SIDE", 64), ("PROBE_SIDE", 64), ("CROPS", 4), ("PROBES", 2)):
            patch.setattr(problem, name, value)
        yield


@pytest.fixture
def search_latency(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``search`` for an easy latency with few attempts: what it finds, within 5 %, or ``None`` where noise made it miss
    that; it has to say so in its one line.
    """
    from norton_det.compression.search.search import search
    from norton_det.utils.errors import InputError

    def run(model: torch.nn.Module, attempts: int, **options: Any) -> Any:
        monkeypatch.setattr(sys.modules[search.__module__], "ATTEMPTS", attempts)
        try:
            found = search(model, target_latency_ms="70%", **options)
        except InputError as error:
            assert "the best that was reached is" in str(error)
            return None
        assert abs(found.reached / found.target - 1) <= 0.05
        return found

    return run


@pytest.fixture
def generator() -> torch.Generator:
    """A random generator with a fixed seed; the global one is left alone."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def call(monkeypatch, capsys):
    """``call(command, *arguments)`` -> (status, stdout, stderr), in this process, as ``python command arguments``."""
    pytest.importorskip("detectron2")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small networks: more threads only wait for each other on a busy machine

    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))  # as Python does for a script

    def make(command: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPOSITORY / command), run_name="__main__")
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    yield make
    torch.set_num_threads(threads)

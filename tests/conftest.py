"""Fixtures that several test modules share: real data and weights where they are at hand, a seed."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# the same examples each time, and no time limit each: a busy machine must not fail a test
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent


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
    from norton_det.checkpoint import read_tensors

    tensors = read_tensors(real_weights_path)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@pytest.fixture
def generator() -> torch.Generator:
    """A random generator with a fixed seed; the global one is left alone."""
    return torch.Generator().manual_seed(0)

"""What the checks start from: a few pictures, a short training that has ended, an exported detector."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from tests import process

from . import LONG
from .faults import Fault
from .faults_training import ITERATIONS, train
from .small import prepare

collect_ignore = [] if LONG else ["test_determinism.py", "test_load.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The ten minutes of load come first: other processes work beside it."""
    items.sort(key=lambda item: "test_load.py" not in item.nodeid)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of data sets, for ``DETECTRON2_DATASETS``."""
    return prepare(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(autouse=True)
def _as_a_child_needs_it(monkeypatch, pictures) -> Iterator[None]:
    """The data set is there; one thread, as others do not survive a fork."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(pictures))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, pictures) -> Path:
    """The output of a short training."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(pictures))
        made = process.run(lambda: train(folder / "out", SOLVER__MAX_ITER=ITERATIONS), folder, 300)
    assert made.status == 0 and (folder / "out" / "model_final.pth").is_file(), made.err
    assert "loss" in (folder / "out" / "metrics.json").read_text().splitlines()[-1]
    return folder / "out"


@pytest.fixture
def place(tmp_path, request) -> Callable[[Fault], Path]:
    """A folder for a fault, with what its group starts from."""

    def make(fault: Fault) -> Path:
        if fault.group in ("checkpoint", "training"):
            (tmp_path / "trained").symlink_to(request.getfixturevalue("trained"))
        if fault.group == "demo":
            made = request.getfixturevalue("exported")
            for suffix in (".xml", ".bin"):
                (tmp_path / f"detector{suffix}").symlink_to(made.with_suffix(suffix))
        return tmp_path

    return make

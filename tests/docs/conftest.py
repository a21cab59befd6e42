"""A folder with what the pages speak of, made once for each process that runs tests."""

import contextlib
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from tests import process

from . import workspace


@pytest.fixture(scope="session")
def folder(tmp_path_factory, request) -> Path:
    root, data = tmp_path_factory.mktemp("user"), None
    with contextlib.suppress(pytest.skip.Exception):  # without real photographs, generated ones
        data = request.getfixturevalue("shared") / "data"
    made = process.run(lambda: workspace.make(root, data), root, 300)
    assert made.status == 0, made.err
    return root


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(monkeypatch, folder) -> None:
    """Data sets are looked for in the folder; nothing is downloaded to, or found in, a cache."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
    monkeypatch.setenv("TORCH_HOME", str(folder / ".torch"))
    monkeypatch.delenv("DISPLAY", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no network, as on the machines that test

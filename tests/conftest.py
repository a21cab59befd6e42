"""Fixtures that several test modules share: real data and weights where they are at hand, a seed."""

import os
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from tests import REPOSITORY, find_shared, process

# the same examples each time, and no time limit each: a busy machine must not fail a test
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
# other examples each time, and three times as many
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("NORTON_DET_EXAMPLES", "repeatable"))

pytest_plugins = ["tests.reliability.promises"]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights; read-only."""
    folder = find_shared()
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
    from norton_det.checkpoint.opened import open_weights

    tensors = open_weights(real_weights_path).state
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def quick_search() -> Any:
    """For searches of whole detectors: fewer ranks to choose from, told by fewer filters and smaller crops."""
    from norton_det.compression.search.settings import SearchSettings

    return SearchSettings(ranks=(1,), filters=4, crops=4, crop_side=64, probe_crops=2, probe_side=64)


@pytest.fixture(scope="session")
def planted_clock() -> Callable[..., Any]:
    """``timing.measure`` on a machine without noise, which takes (FLOPs / 10 G) ** 1.1 seconds.

    So a whole network takes longer than its layers one by one, and a table of these tells of it only roughly.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from norton_det.utils.timing import Timing

    def measure(candidates: Mapping[str, Callable[[], object]], *, rounds: int, **_: object) -> dict[str, Timing]:
        timings = {}
        for name, call in candidates.items():
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                call()
            timings[name] = Timing(((counter.get_total_flops() / 10e9) ** 1.1,) * rounds)
        return timings

    return measure


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh torchvision Faster R-CNN, norton-78, for OpenVINO: it answers in milliseconds, with scores of about 1/3.

    A process of its own makes it: this one, which others are forked from, has no thread of an engine.
    """
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("exported")

    def make() -> None:
        from norton_det.deploy import export
        from norton_det.tv import fasterrcnn_norton_resnet50_fpn

        torch.manual_seed(0)
        options = {"weights_backbone": None, "num_classes": 3, "box_score_thresh": 0.0, "box_detections_per_img": 8}
        detector = fasterrcnn_norton_resnet50_fpn(weights=None, rpn_post_nms_top_n_test=30, **options)
        export(detector.eval(), "norton-78.xml", min_size=64, max_size=128, classes=("background", "cat", "dog"))

    made = process.run(make, folder, 300)
    assert made.status == 0, made.err
    return folder / "norton-78.xml"


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

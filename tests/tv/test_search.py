"""Targets of whole torchvision detectors, with pictures and without; the result compresses, saves and loads."""

from dataclasses import replace

import pytest
import torch

from norton_det.compression.detector import compress_detector
from norton_det.compression.search.costs import CostModel
from norton_det.compression.search.measured_latency import measure_whole
from norton_det.compression.search.problem import problem_of
from norton_det.compression.search.search import search
from norton_det.models.complexity import count_complexity
from norton_det.tv import maskrcnn_norton_resnet50_fpn, read_detector_info, save_detector
from norton_det.utils.errors import InputError

from .test_detectors import BUILDERS, SMALL

SIZE = (3, 96, 128)


@pytest.fixture(scope="module")
def mask():
    torch.manual_seed(0)
    build = BUILDERS[maskrcnn_norton_resnet50_fpn][0]
    model = build(weights=None, weights_backbone=None, box_score_thresh=0.0, **SMALL).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def pictures():
    coarse = torch.rand(4, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return list(torch.nn.functional.interpolate(coarse, size=(64, 80), mode="bilinear").clamp(0, 1))


@pytest.fixture(scope="module")
def found(mask, pictures, quick_search):
    return search(mask, target_macs="40%", calibration=pictures, input_size=SIZE, settings=quick_search)


def test_costs_are_those_of_the_count(mask):
    network = problem_of(mask, None, SIZE).network
    choice = {name: 1 if value is None else value // 2 for name, value in network.dense().items()}
    spec, layout = network.to_spec(choice)
    options = {"neck_rank": None, "head_rank": None, "box_head_rank": None, "criterion": "norm", "starts": 1}
    small = compress_detector(mask, spec, layout=layout, input_size=SIZE, **options).model
    counted = count_complexity(small, SIZE)
    assert len(layout) == 4 + 1 + 2 + 4 and set(layout.values()) == {1}
    assert CostModel(network, "macs").total(choice) == counted.macs
    assert CostModel(network, "params").total(choice) == counted.params


def test_the_result_compresses_saves_and_loads(mask, found, tmp_path):
    assert abs(found.reached / found.target - 1) <= 0.05 and len(found.layout) == 11
    result = compress_detector(mask, found.spec, layout=found.layout, input_size=SIZE, criterion="norm", starts=1)
    assert result.report.macs[1] == found.reached
    path = save_detector(tmp_path / "mask.safetensors", result.model)
    assert read_detector_info(path).backbone.layout == {n: rank for n, rank in found.layout.items() if rank}
    again = maskrcnn_norton_resnet50_fpn(weights=path, box_score_thresh=0.0, **SMALL).eval()
    assert count_complexity(again, SIZE).macs == found.reached
    assert set(measure_whole(mask, again, SIZE, rounds=1)) == {"dense", "small"}


@pytest.mark.parametrize("target", [{"target_macs": "60%"}, {"target_params": "30%"}, {"target_params": "15M"}])
def test_more_targets(mask, found, target):
    other = search(mask, **target, input_size=SIZE, sensitivity=found.sensitivity)
    assert abs(other.reached / other.target - 1) <= 0.05


def test_a_latency_of_a_detector_is_that_of_its_frame(mask, found, quick_search, planted_clock):
    """Of the choices that were timed the nearest is given, with the time that its frame takes.

    The target itself need not be met here: frames of so few proposals are not what a table of layers predicts.
    """
    settings = replace(quick_search, measure=planted_clock, attempts=2, tolerance=1e3)
    options = {"input_size": SIZE, "sensitivity": found.sensitivity, "rounds": 1, "settings": settings}
    result = search(mask, target_latency_ms="70%", **options)
    assert result.target == pytest.approx(0.7 * result.dense) and len(result.history) == 2
    off = {step.measured: abs(step.measured / result.target - 1) for step in result.history}
    assert result.reached == min(off, key=off.__getitem__) < 0.95 * result.dense
    problem, layout = problem_of(mask, None, SIZE), {name: rank for name, rank in result.layout.items() if rank}
    frames = {"dense": problem.frame(None, {}), "small": problem.frame(result.spec, layout)}
    times = {name: 1e3 * timing.median for name, timing in planted_clock(frames, rounds=1).items()}
    assert times == {"dense": pytest.approx(result.dense), "small": pytest.approx(result.reached)}


def test_without_pictures_and_what_is_impossible(mask, quick_search):
    with pytest.raises(
        InputError, match=r"got 0\.10 G MACs; the best that was reached is \d+\.\d\d G MACs of"
    ) as caught:
        search(mask, target_macs="0.1G", input_size=SIZE, settings=quick_search)
    assert "\n" not in str(caught.value)


def test_what_is_compressed_already_is_refused(mask, found):
    small = compress_detector(mask, None, neck_rank=1, head_rank=None, box_head_rank=None).model
    with pytest.raises(InputError, match="expected dense layers around the ResNet, got factored ones"):
        search(small, target_macs="50%")
    with pytest.raises(InputError, match=r"image 0: expected values in 0\.\.1"):
        search(mask, target_macs="50%", calibration=[255 * torch.rand(3, 64, 64)])

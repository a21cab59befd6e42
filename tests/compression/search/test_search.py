"""Targets are met within 5 %, at the least error; what cannot be met says what can; costs are those of the count."""

import itertools
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

import norton_det as nd
from norton_det.compression.calibration import Calibration
from norton_det.compression.criteria import css_curve
from norton_det.compression.search.allocate import allocate
from norton_det.compression.search.costs import CostModel, describe_network
from norton_det.compression.search.error_curves import conv_ranks, matrix_ranks, width_grid
from norton_det.compression.search.latency import LatencyModel
from norton_det.compression.search.measured_latency import allocate_measured
from norton_det.compression.search.search import search
from norton_det.compression.search.sensitivity import Group
from norton_det.compression.search.settings import SearchSettings
from norton_det.compression.search.target import parse_target
from norton_det.models.complexity import count_complexity
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError
from norton_det.utils.timing import measure

SIZE = (3, 64, 64)
QUICK = SearchSettings(ranks=(2, 1), filters=4)  # fewer ranks to choose from, told by fewer filters


def random_resnet(seed: int = 0, classes: int = 5) -> NortonResNet:
    """A dense network whose normalisations are not the identity."""
    torch.manual_seed(seed)
    model = NortonResNet(CompressionSpec.dense(), classes).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (".bn" in name and name.endswith("weight")):
            tensor.uniform_(0.5, 1.0)
    return model


@pytest.fixture(scope="module")
def model():
    return random_resnet()


@pytest.fixture(scope="module")
def first(model):
    """A search by the weights; the others begin with its errors."""
    return search(model, target_macs="50%", settings=QUICK)


# --- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride_in_1x1", "size"), [(False, (3, 96, 70)), (True, (3, 64, 130))])
def test_costs_are_those_of_the_count(stride_in_1x1, size):
    with torch.device("meta"):
        dense = NortonResNet(CompressionSpec.dense(), 10, stride_in_1x1)
    network = describe_network(dense, "resnet50", size, stride_in_1x1=stride_in_1x1)
    generator = random.Random(0)
    for _ in range(3):
        choice = {
            name: generator.choice([None, 1, 2, 9]) if value is None else generator.randint(1, value)
            for name, value in network.dense().items()
        }
        spec, layout = network.to_spec(choice)
        with torch.device("meta"):
            counted = count_complexity(NortonResNet(spec, 10, stride_in_1x1), size)
        assert layout == {}
        assert CostModel(network, "macs").total(choice) == counted.macs
        assert CostModel(network, "params").total(choice) == counted.params


def test_a_change_of_one_group_is_the_difference_of_the_totals(model):
    network = describe_network(model, "resnet50", SIZE)
    costs, choice = CostModel(network, "macs"), network.dense()
    for group, value in (("layer2", 100), ("layer3.1", 7), ("layer4.2.conv2", 2), ("conv1", 16)):
        changed = costs.change(choice, group, value)
        assert changed == costs.total(choice | {group: value}) - costs.total(choice) < 0


def test_grids():
    assert width_grid(64) == [64, 56, 48, 40, 32, 24, 16, 8]
    assert conv_ranks(8, (9, 2, 1)) == [None, 2, 1] and conv_ranks(1, (2, 1)) == [None, 1]
    assert matrix_ranks(40) == [None, 32, 24, 16, 12] and matrix_ranks(0) == [None]


def test_css_curve_is_what_least_squares_leaves(generator):
    x = torch.randn(200, 8, generator=generator).double() @ torch.randn(8, 8, generator=generator).double()
    readers = torch.randn(5, 8, generator=generator).double()
    x = x - x.mean(0)
    order, errors = css_curve(x.T @ x / len(x), readers)
    target = x @ readers.T
    assert sorted(order.tolist()) == list(range(8)) and errors[0] == 1
    for keep in (1, 4, 7):
        found = torch.linalg.lstsq(x[:, order[:keep]], target).solution
        left = (target - x[:, order[:keep]] @ found).square().sum() / target.square().sum()
        assert float(errors[keep]) == pytest.approx(float(left), rel=1e-3, abs=1e-4)


# --- allocation -------------------------------------------------------------------------------------------------------


def groups_for(network, errors):
    """Groups whose errors grow with what is dropped, times a number by name."""
    found = []
    for name, value in network.dense().items():
        values = conv_ranks(9, QUICK.ranks) if value is None else width_grid(value)
        scale = errors.get(name, 1.0)
        found.append(Group(name, tuple(values), tuple(scale * step**1.5 for step in range(len(values)))))
    return found


def test_sensitive_layers_keep_more(model):
    network = describe_network(model, "resnet50", SIZE)
    costs = CostModel(network, "macs")
    found = allocate(groups_for(network, {"layer3.1": 100.0, "layer3.2": 0.01}), costs, 0.5 * costs.dense)
    assert found.met and found.assignment["layer3.1"] == 256 and found.assignment["layer3.2"] < 100
    assert 0.97 * costs.dense < 2 * found.cost <= costs.dense
    assert found.cost == costs.total(found.assignment)


def test_allocation_is_near_the_best_of_all():
    """Two groups of few values: against trying everything."""
    with torch.device("meta"):
        network = describe_network(NortonResNet(CompressionSpec.dense()), "resnet50", SIZE)
    costs = CostModel(network, "params")
    groups = [each for each in groups_for(network, {"layer4.0": 3.0}) if each.name in ("layer4.0", "layer4.1")]
    for share in (0.95, 0.9, 0.8):
        found = allocate(groups, costs, share * costs.dense)
        possible = []
        for one, two in itertools.product(range(8), range(8)):
            choice = network.dense() | {"layer4.0": groups[0].values[one], "layer4.1": groups[1].values[two]}
            if costs.total(choice) <= share * costs.dense:
                possible.append(groups[0].errors[one] + groups[1].errors[two])
        assert found.met and found.error <= 1.2 * min(possible)


def test_what_is_left_goes_to_values_between(model):
    """One group of two coarse values: the target lies between them."""
    network = describe_network(model, "resnet50", SIZE)
    costs = CostModel(network, "params")
    groups = [Group("layer4.1", (512, 64), (0.0, 1.0))]
    found = allocate(groups, costs, 0.9 * costs.dense)
    assert 64 < found.assignment["layer4.1"] < 512 and 0.89 * costs.dense < found.cost <= 0.9 * costs.dense
    assert found.cost == costs.total(found.assignment) and 0 < found.error < 1


def test_what_cannot_be_met_is_the_cheapest(model):
    network = describe_network(model, "resnet50", SIZE)
    found = allocate(groups_for(network, {}), CostModel(network, "macs"), 1.0)
    assert not found.met and found.assignment["layer1"] == 32 and found.assignment["layer4.1.conv2"] == 1


# --- search -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("share", ["70%", "40%", "15%"])
def test_targets_are_met(model, first, kind, share):
    found = search(model, **{f"target_{kind}": share}, sensitivity=first.sensitivity)
    assert abs(found.reached / found.target - 1) <= 0.05 and found.kind == kind
    with torch.device("meta"):
        counted = count_complexity(NortonResNet(found.spec, 5))
    assert getattr(counted, kind) == found.reached
    assert f"target {found.target / (1e9 if kind == 'macs' else 1e6):.2f}" in found.summary()


def test_the_result_compresses_saves_and_loads(model, first, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = search(model, target_params=12.0e6, sensitivity=first.sensitivity)
    result = nd.compress(model, found.spec, criterion="norm", starts=1)
    assert result.report.params[1] == found.reached == pytest.approx(12.0e6, rel=0.05)
    nd.save_checkpoint(tmp_path / "small.safetensors", result.model)
    again = nd.load_checkpoint(tmp_path / "small.safetensors")
    assert again.spec.same_network(found.spec)
    x = torch.randn(1, *SIZE)
    with torch.no_grad():
        assert torch.equal(again(x), result.model(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.to_dict()["spec"] == found.spec.to_dict() and "layer4.2.conv2" in found.table()


def test_images_tell_which_layers_matter(generator):
    """A block that adds next to nothing is cut to the bone; with images that shows in its errors too."""
    model = random_resnet(1)
    with torch.no_grad():
        model.layer3[2].bn3.weight.mul_(1e-3)
        model.layer3[2].bn3.bias.zero_()
    images = torch.nn.functional.interpolate(torch.randn(8, 3, 6, 6, generator=generator), size=64, mode="bilinear")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = search(model, target_macs="60%", calibration=Calibration(images), settings=QUICK)
    assert abs(found.reached / found.target - 1) <= 0.05
    assert found.spec.widths().blocks[2][2] == 32 and min(found.spec.widths().blocks[2][3:]) > 32
    errors = {group.name: group.errors for group in found.sensitivity}
    assert errors["layer3.2"][-1] < 1e-3 * errors["layer3.3"][-1]
    assert all(part[0] == 0 and list(part) == sorted(part) for part in errors.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Meter:
    """Measures what a cost model predicts, off by a factor and an offset."""

    def __init__(self, costs, factor):
        self.costs, self.factor = costs, factor

    def milliseconds(self, allocation):
        return self.costs.dense - self.factor * (self.costs.dense - allocation.cost)


@pytest.mark.parametrize("factor", [1.0, 0.6, 1.4])
def test_latencies_are_corrected_by_what_is_measured(model, factor):
    network = describe_network(model, "resnet50", SIZE)
    costs = CostModel(network, "macs", 100.0 + CostModel(network, "macs").dense)
    target, meter = 0.6 * costs.dense, Meter(costs, factor)
    allocation, reached, history = allocate_measured(groups_for(network, {}), costs, target, meter, QUICK)
    assert reached == meter.milliseconds(allocation) == pytest.approx(target, rel=0.05) and allocation.met
    assert len(history) == 1 if factor == 1.0 else 1 < len(history) < 8
    missed = abs(history[0].measured / target - 1)
    assert missed <= 0.04 if factor == 1.0 else missed > 0.05


def test_a_latency_table_predicts_less_for_less(model):
    network = describe_network(model, "resnet50", SIZE)
    costs = LatencyModel(network, 50.0, measure, rounds=2)
    smallest = {name: 1 if value is None else value // 8 for name, value in network.dense().items()}
    assert costs.total(network.dense()) == pytest.approx(50.0)
    assert costs.total(smallest) < 50.0


def test_a_latency_is_met_where_the_table_of_layers_is_wrong(model, first, planted_clock):
    settings = replace(QUICK, measure=planted_clock)
    result = search(model, target_latency_ms="70%", input_size=SIZE, sensitivity=first.sensitivity, settings=settings)
    assert result.target == pytest.approx(0.7 * result.dense) == pytest.approx(result.reached, rel=0.05)
    assert abs(result.history[0].measured / result.target - 1) > 0.05  # as predicted it would have missed
    x = torch.randn(1, *SIZE)
    networks = {"dense": model, "small": nd.compress(model, result.spec, criterion="norm", starts=1).model}
    times = planted_clock({name: partial(nd.fuse(network), x) for name, network in networks.items()}, rounds=1)
    assert 1e3 * times["dense"].median == pytest.approx(result.dense)
    assert 1e3 * times["small"].median == pytest.approx(result.reached)


def test_a_latency_is_timed_on_this_machine(model, first):
    """Whatever the clock says, it is reported, and the network is smaller."""
    settings = replace(QUICK, attempts=2, tolerance=1e3)
    options = {"input_size": SIZE, "sensitivity": first.sensitivity, "rounds": 3, "settings": settings}
    result = search(model, target_latency_ms="70%", **options)
    assert 1 <= len(result.history) <= 2 and all(step.measured > 0 for step in result.history)
    assert result.reached in [step.measured for step in result.history] and "threads" in result.summary()
    assert not result.spec.is_dense and result.dense > 0


@pytest.mark.parametrize(
    ("target", "pattern"),
    [
        ({}, "expected one of target_macs, target_params, target_latency_ms, got 0; give one"),
        ({"target_macs": 1e9, "target_params": 1e6}, "got 2; give one"),
        ({"target_macs": "lots"}, "target_macs: expected a number such as 25G, 25e9 or 40%, got 'lots'"),
        ({"target_macs": "30ms"}, "target_macs: expected a number such as"),
        ({"target_macs": 0}, "target_macs: expected a number such as"),
        ({"target_macs": "5G"}, r"expected less than the dense network's 4\.09 G MACs, got 5\.00 G MACs; lower it"),
        ({"target_params": "0.1M"}, r"got 0\.10 M params; the best that was reached is \d\.\d\d M params of 23"),
        (
            {"target_macs": "1%"},
            r"the best that was reached is 0\.\d\d G MACs of 4\.09 G MACs; choose",
        ),
    ],
)
def test_other_targets_are_refused_in_one_line(model, first, target, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        search(model, **target, sensitivity=first.sensitivity)
    assert "\n" not in str(caught.value)


def test_compressed_networks_are_refused():
    with torch.device("meta"):
        small = NortonResNet(CompressionSpec.preset("norton-64"))
    with pytest.raises(InputError, match="expected dense"):
        search(small.to_empty(device="cpu"), target_macs="50%")


def test_forms_of_targets():
    assert parse_target("25G", "macs") == parse_target(25e9, "macs") == parse_target("25e9", "macs") == 25e9
    assert parse_target("12.5m", "params") == 12.5e6 and parse_target(" 300 ms", "latency_ms") == 300
    assert parse_target("40%", "latency_ms", 50.0) == pytest.approx(20.0)


def test_groups_know_errors_between_their_values():
    group = Group("layer1", (256, 224, 192), (0.0, 1.0, 3.0))
    assert group.error_of(224) == 1.0 and group.error_of(208) == pytest.approx(2.0)
    with pytest.raises(InputError, match="expected one of"):
        replace(group, values=(None, 2, 1)).error_of(3)

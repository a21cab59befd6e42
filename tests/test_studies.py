"""What the studies of tools/studies are built from."""

import sys

import pytest
import torch

from norton_det.decomposition.cp import Factors, cp_decompose
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from tests import REPOSITORY

pytest.importorskip("tensorly")
sys.path.insert(0, str(REPOSITORY / "tools"))
from studies import ablations, bench, calibrated, release

from norton_det.utils.tables import Table, markdown


def test_ratio_for_meets_the_macs():
    for rank in (None, 1, 3):
        spec = bench.ratio_for(1.4e9, rank)
        assert bench.macs_of(spec) == pytest.approx(1.4e9, rel=0.01)
    assert bench.macs_of(CompressionSpec.preset("norton-78")) == 899_619_808


def test_table_goes_on_where_it_stopped(tmp_path):
    wanted = [{"rank": rank, "name": name} for rank in (1, 2) for name in ("a", "b")]
    table = Table(tmp_path / "x.csv", ("rank", "name"))
    for row in list(table.missing(wanted))[:3]:
        table.add(row | {"top1": 50.0 + row["rank"], "note": ""})
    again = Table(tmp_path / "x.csv", ("rank", "name"))
    assert again.rows[0] == {"rank": 1, "name": "a", "top1": 51.0, "note": ""}
    assert list(again.missing(wanted)) == [{"rank": 2, "name": "b"}]


def test_markdown():
    text = markdown([{"a": 1, "b": 2.345}, {"a": "x", "c": None}])
    assert text.splitlines() == ["| a | b | c |", "| --- | ---: | ---: |", "| 1 | 2.35 | - |", "| x | - | - |"]


@pytest.mark.parametrize("method", ablations.LAYER_METHODS)
def test_other_decompositions_use_their_budget(method, generator):
    """The error falls with the budget, to nothing where it allows full rank (not for layer-wise CP: ALS)."""
    weight = torch.randn(12, 10, 3, 3, generator=generator)
    decompose = ablations.LAYER_METHODS[method]
    errors = [
        float((decompose(weight, budget) - weight).square().sum() / weight.square().sum())
        for budget in (300, 900, 10**6 if method != "layer-wise CP" else 3000)
    ]
    assert errors[0] > errors[1] > errors[2], errors
    assert errors[2] < (0.05 if method == "layer-wise CP" else 1e-8)


def test_release_keeps_by_its_faults(generator):
    """Orthogonal filters count as equal, and the kept set comes from the order of removal read as scores."""
    factors = cp_decompose(torch.randn(8, 6, 3, 3, generator=generator), 1)
    kept = release.release_keep(factors, 3)
    assert len(kept) == 3 and torch.equal(kept, kept.sort().values) and len(set(kept.tolist())) == 3
    orthogonal = Factors(
        torch.eye(4)[:, :, None], torch.eye(3)[[0, 0, 0, 0], :, None], torch.eye(3)[[0, 0, 0, 0], :, None]
    )
    modes = [release.subspace_angles(mode).remainder(torch.pi / 2) for mode in (orthogonal.a, orthogonal.b)]
    assert all(mode.abs().max() < 1e-9 for mode in modes)


def test_release_state_is_a_whole_network():
    torch.manual_seed(0)
    dense, spec = NortonResNet(CompressionSpec.dense(), 5), CompressionSpec.preset("norton-78")
    state = dense.state_dict()
    names = [f"layer{stage}.{block}.conv2" for stage, block in spec.blocks()]
    factors = {name: cp_decompose(state[f"{name}.weight"], 1, starts=1, iterations=2) for name in names}
    model = NortonResNet(spec, 5)
    model.load_state_dict(release.release_state(state, factors, spec))
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_every_step_adds_to_the_one_before():
    steps = list(calibrated.STEPS.items())
    assert [name for name, _ in steps] == ["release", "PABS", "+ BN", "+ compensation", "+ output CP", "+ css"]
    assert steps[2][1] == {"compensate": False, "decomposition": "weight"} and steps[5][1] == {}

"""Figures that the code gave when it was written down: what only restructures code must not move them.

Of trained weights each preset's: errors of the decomposition, channels kept, multiply-adds and parameters. Of generated
ones: decompositions, orders of elimination, and every kind of fit.
"""

from typing import Any

import pytest
import torch
from torch import nn

from norton_det.checkpoint.digest import content_digest
from norton_det.compression.criteria import css_curve, elimination_order
from norton_det.compression.fitter import FitSettings, fit_layer, fit_low_rank
from norton_det.compression.resnet import compress
from norton_det.compression.sampling import draw_positions, draw_positions_evenly
from norton_det.decomposition.angles import pabs_distance
from norton_det.decomposition.cp import cp_decompose, nmse
from norton_det.decomposition.cp_output import flatten_weight
from norton_det.decomposition.moments import Moments
from norton_det.models.layers import LowRankLinear

LAYERS = ("layer1.0.conv2", "layer2.3.conv2", "layer3.5.conv2", "layer4.2.conv2")
PRESETS = {  # digest of the indices kept; multiply-adds at 224 x 224; parameters with 10 classes
    "norton-64": ("26c9a8114c6eedfd", 1_471_490_480, 8_496_832),
    "norton-77": ("f5f6b7ac9653e823", 960_822_427, 5_932_420),
    "norton-78": ("6a545872e5d02fa9", 897_592_288, 3_857_226),
}
NMSE = (0.5937848796984612, 0.6677473034965313, 0.7744220476555485, 0.8164024829090233)  # all presets have rank 1

FIGURES: dict[str, Any] = {
    "nmse": {1: 0.5145099870238641, 2: 0.23604101487751547, 3: 0.09298791433339067, 5: 0.010215019448089356},
    "orders": {1: [15, 23, 13, 6, 20, 8, 17, 0], 2: [10, 19, 18, 7, 9, 15, 21, 12]},
    "css order": [19, 54, 21, 47, 22, 65, 66, 71, 55, 56],
    "css errors": [0.9259386992433469, 0.5700395900567764, 0.09629447095045525],
    "fits": {
        "dense": (0.006782747336191108, 38.131989210991314, 1.4243235814653379),
        "rank 1": (0.4185448199474462, 29.3753546629688, 21.67070902953817),
        "rank 2": (0.18427254966521067, 34.209733904449024, 10.091824508787704),
        "kernel fixed": (0.4519935899145976, 28.479947912925017, 22.250185765792747),
        "shrunk": (0.4194137255127214, 29.026739397671772, 21.595007684844088),
    },
    "low rank": (0.4319766641734948, 1.7885030508041382, 2.449492931365967),
    "positions": ["1871f385a3713aa8", "39670cd7bde23bad"],
}


@pytest.mark.parametrize("preset", PRESETS)
def test_trained_weights(real_weights, preset):
    kept, macs, params = PRESETS[preset]
    report = compress(real_weights, preset, starts=1).report
    errors = {layer.name: layer.nmse for layer in report.layers}
    assert [errors[name] for name in LAYERS] == pytest.approx(NMSE, rel=1e-6)
    assert content_digest({name: list(index) for name, index in report.kept.items()})[:16] == kept
    assert (report.macs, report.params) == ((4_087_156_736, macs), (23_528_522, params))


@pytest.fixture
def weight(generator):
    """Generated filters (24, 8, 3, 3) that are neither random nor of low rank."""
    coarse = torch.randn(24, 8, 2, 2, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=3, mode="bilinear", align_corners=True)
    return smooth + 0.3 * torch.randn(24, 8, 3, 3, generator=generator)


@pytest.fixture
def rows(weight, generator):
    """What a convolution reads (400, 72), correlated, and what it gives with noise (400, 24)."""
    mixing = torch.randn(72, 72, generator=generator) / 72**0.5 + torch.eye(72)
    x = torch.randn(400, 72, generator=generator) @ mixing + 0.5
    return x, x @ flatten_weight(weight).T + torch.randn(400, 24, generator=generator)


def test_decompositions(weight):
    factors = {rank: cp_decompose(weight, rank) for rank in (1, 2, 3, 5)}
    assert {rank: nmse(weight, factors[rank]) for rank in factors} == pytest.approx(FIGURES["nmse"], rel=1e-6)
    assert {rank: elimination_order(pabs_distance(factors[rank]))[:8].tolist() for rank in (1, 2)} == FIGURES["orders"]


def test_channels_by_data(rows, weight):
    covariance = torch.cov(rows[0].T.double())
    order, errors = css_curve(covariance, flatten_weight(weight))
    assert order[:10].tolist() == FIGURES["css order"]
    assert errors[[1, 10, 40]].tolist() == pytest.approx(FIGURES["css errors"], rel=1e-6)


@pytest.mark.parametrize("kind", ["dense", "rank 1", "rank 2", "kernel fixed", "shrunk"])
def test_fits(rows, weight, kind):
    settings = {
        "kernel fixed": FitSettings(kernel=False),
        "shrunk": FitSettings(shrinkage=0.3, sweeps=(3, 2)),
    }.get(kind, FitSettings())
    start = None if kind == "dense" else cp_decompose(weight, 2 if kind == "rank 2" else 1)
    fit = fit_layer(Moments.of("golden", [rows]), flatten_weight(weight), settings, start)
    figures = fit.error, float(fit.weight.norm()), float(fit.bias.norm())
    assert figures == pytest.approx(FIGURES["fits"][kind], rel=1e-6)


def test_low_rank_fit(rows):
    torch.manual_seed(0)
    dense = nn.Linear(72, 24)
    layer = LowRankLinear.from_linear(dense, 6)
    with torch.no_grad():
        fit = fit_low_rank(layer, "golden", dense, [(rows[0], dense(rows[0]))], FitSettings(shrinkage=0.3))
        figures = fit.error, float(layer.first.weight.norm()), float(layer.second.weight.norm())
    assert figures == pytest.approx(FIGURES["low rank"], rel=1e-5)


def test_drawn_positions(generator):
    anywhere = draw_positions((3, 5, 7), 40, generator)
    evenly = draw_positions_evenly((3, 5, 7), 12, generator)
    assert [content_digest(positions.tolist())[:16] for positions in (anywhere, evenly)] == FIGURES["positions"]

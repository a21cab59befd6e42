"""The CP decomposition in the metric of the output."""

from itertools import pairwise

import pytest
import torch

from norton_det.decomposition.cp import Factors, cp_decompose
from norton_det.decomposition.cp_output import fit_output, flatten_weight, weight_of
from norton_det.decomposition.moments import Moments

O, I, K = 6, 5, 9


def patches(generator, count=4000):
    """Strongly correlated patches (rows, K*I), as those of images are."""
    base = torch.randn(count, 12, generator=generator)
    return base @ torch.randn(12, K * I, generator=generator) + 0.3 * torch.randn(count, K * I, generator=generator)


def moments_of(x, weight):
    found = Moments("layer")
    found.add(x, x @ flatten_weight(weight).T)
    return found.finish()


def error(moments, factors, weight):
    """Relative output error of factors against the dense weight."""
    difference = weight_of(factors) - flatten_weight(weight).double()
    wanted = flatten_weight(weight).double()
    return float(((difference @ moments.xx) * difference).sum() / ((wanted @ moments.xx) * wanted).sum())


@pytest.fixture
def weight(generator):
    return torch.randn(O, I, 3, 3, generator=generator)


def test_layouts_agree(generator, weight):
    factors = cp_decompose(weight, 9)
    torch.testing.assert_close(weight_of(factors), flatten_weight(weight), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_better_than_the_weights_decomposition_and_monotone(generator, weight, rank):
    moments, prior = moments_of(patches(generator), weight), flatten_weight(weight)
    start = cp_decompose(weight, rank)
    errors = [error(moments, start, weight)]
    for sweeps in (1, 2, 4, 8):
        errors.append(error(moments, fit_output(moments, start, prior, 1e-6, sweeps=sweeps), weight))
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(errors)), errors
    assert errors[-1] < 0.6 * errors[0], errors


@pytest.mark.parametrize("rank", [1, 3])
def test_a_planted_layer_is_recovered(generator, rank):
    """Targets of an exact rank-R layer, from a start nearby."""
    planted = Factors(*(torch.randn(O, d, rank, generator=generator) for d in (I, 3, 3)))
    weight = weight_of(planted).view(O, K, I).transpose(1, 2).reshape(O, I, 3, 3)
    start = Factors(
        *(part + 0.1 * torch.randn(part.shape, generator=generator) for part in (planted.a, planted.b, planted.c))
    )
    moments = moments_of(patches(generator), weight)
    before = error(moments, start, weight)
    found = fit_output(moments, start, weight_of(start), 1e-9, sweeps=60)
    assert error(moments, found, weight) < 0.01 * before


def test_fixed_kernels_stay_and_the_inputs_are_the_best(generator, weight):
    """kernel=False: directions of B and C stay; A is the least-squares solution in front of them."""
    x = patches(generator)
    moments, start = moments_of(x, weight), cp_decompose(weight, 1)
    found = fit_output(moments, start, flatten_weight(weight), 1e-9, sweeps=5, kernel=False)
    for new, old in ((found.b, start.b), (found.c, start.c)):
        cosine = torch.nn.functional.cosine_similarity(new.float(), old, dim=1).abs()
        torch.testing.assert_close(cosine, torch.ones_like(cosine))
    o = 2
    kernel = (start.b[o, :, :1] * start.c[o, :, 0]).flatten()
    inputs = torch.einsum("nki,k->ni", x.view(-1, K, I), kernel).double()
    target = (x @ flatten_weight(weight)[o]).double()
    centred = inputs - inputs.mean(0), target - target.mean()
    expected = torch.linalg.lstsq(centred[0], centred[1][:, None]).solution[:, 0]
    got = weight_of(found)[o].view(K, I)
    torch.testing.assert_close(got, kernel.double()[:, None] * expected, atol=1e-4, rtol=1e-3)


def test_zero_and_constant_filters_stay_finite(generator, weight):
    weight[1] = 0
    moments = moments_of(patches(generator), weight)
    found = fit_output(moments, cp_decompose(weight, 2), flatten_weight(weight), 1e-3)
    assert all(part.isfinite().all() for part in (found.a, found.b, found.c))
    assert weight_of(found)[1].abs().max() < 1e-6
    norms = [part.norm(dim=1) for part in (found.a, found.b, found.c)]
    torch.testing.assert_close(norms[0][0], norms[1][0])  # balanced
    torch.testing.assert_close(norms[1][0], norms[2][0])

"""Moments: chunks do not matter, and the fits are the least-squares solutions."""

import pytest
import torch

from norton_det.decomposition.moments import Moments
from norton_det.utils.errors import InputError


def rows(generator, count=5000, features=600, outputs=4):
    """Correlated inputs with a mean far from zero, and targets that they partly explain."""
    mixing = torch.randn(features, features, generator=generator) / features**0.5 + torch.eye(features)
    x = torch.randn(count, features, generator=generator) @ mixing + 3
    y = x @ torch.randn(features, outputs, generator=generator) + torch.randn(count, outputs, generator=generator)
    return x, y


def moments(x, y, chunk=None):
    found = Moments("layer")
    for a, b in zip(x.split(chunk or len(x)), y.split(chunk or len(y)), strict=True):
        found.add(a, b)
    return found.finish()


def test_moments_are_those_of_all_rows(generator):
    """More features than a panel, more rows than are summed at once."""
    x, y = rows(generator)
    found = moments(x, y, 700)
    wide = torch.cat([x, y], 1).double()
    covariance = torch.cov(wide.T, correction=0)
    assert found.rows == len(x)
    torch.testing.assert_close(found.mean_x, x.double().mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.mean_y, y.double().mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.xx, covariance[:600, :600], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.xy, covariance[:600, 600:], atol=1e-4, rtol=1e-4)
    assert torch.equal(found.xx, found.xx.T)


def test_least_squares_is_the_solution(generator):
    x, y = rows(generator, 3000, 20)
    found = moments(x, y)
    weight = found.least_squares(torch.zeros(4, 20), 1e-9)
    padded = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    expected = torch.linalg.lstsq(padded, y.double()).solution
    torch.testing.assert_close(weight, expected[:20].T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.mean_y - weight @ found.mean_x, expected[20], atol=1e-3, rtol=1e-3)


def test_a_strong_ridge_gives_the_prior(generator):
    x, y = rows(generator, 300, 20)
    prior = torch.randn(4, 20, generator=generator)
    torch.testing.assert_close(moments(x, y).least_squares(prior, 1e9).float(), prior, atol=1e-5, rtol=1e-5)


def test_inputs_without_variance_leave_the_prior(generator):
    prior = torch.randn(2, 3, generator=generator)
    found = moments(torch.ones(10, 3), torch.ones(10, 2))
    torch.testing.assert_close(found.least_squares(prior, 1e-2).float(), prior)


def test_output_moments(generator):
    x, y = rows(generator, 2000, 10)
    weight = torch.randn(4, 10, generator=generator)
    mean, variance = moments(x, y).output_moments(weight)
    out = x.double() @ weight.double().T
    torch.testing.assert_close(mean, out.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variance, out.var(0, correction=0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("where", ["x", "y"])
def test_not_finite(generator, where):
    x, y = rows(generator, 100, 5)
    (x if where == "x" else y)[50, 1] = torch.nan
    with pytest.raises(InputError, match="layer: expected finite activations on the calibration images, got NaN"):
        moments(x, y)

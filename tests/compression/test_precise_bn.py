"""Re-estimated statistics of normalisation, frozen ones too."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from norton_det.compression.precise_bn import reestimate_batch_norm
from norton_det.utils.errors import InputError


def network(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 5, 1), norm(5))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_statistics_are_those_of_the_images(norm, generator):
    model = network(norm)
    with torch.no_grad():
        model[1].weight.fill_(2.0)
        model[1].bias.fill_(0.5)
    model.train()
    images = 5 + 3 * torch.randn(40, 3, 12, 12, generator=generator)
    assert reestimate_batch_norm(model, images.split(40)) == 2
    assert model.training  # as it was
    model.eval()
    with torch.no_grad():
        first = model[0](images)
        second = model[3](model[2](model[1](first)))
    for layer, values in ((model[1], first), (model[4], second)):
        torch.testing.assert_close(layer.running_mean, values.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.running_var, values.var((0, 2, 3), correction=0), atol=1e-3, rtol=1e-4)
    assert model[1].weight.eq(2).all() and model[1].bias.eq(0.5).all()


def test_batches_are_pooled(generator):
    images = torch.randn(40, 3, 8, 8, generator=generator) * torch.linspace(1, 5, 40).view(-1, 1, 1, 1)
    whole, parts = network(nn.BatchNorm2d), network(nn.BatchNorm2d)
    reestimate_batch_norm(whole, [images])
    reestimate_batch_norm(parts, images.split(7))
    torch.testing.assert_close(whole[1].running_mean, parts[1].running_mean)
    torch.testing.assert_close(whole[1].running_var, parts[1].running_var)  # of different batch means, too


def test_bad_input(generator):
    model = network(nn.BatchNorm2d)
    with pytest.raises(InputError, match="expected images, got none"):
        reestimate_batch_norm(model, [])
    before = model[1].running_mean.clone()
    with pytest.raises(InputError, match="1: expected finite activations, got NaN"):
        reestimate_batch_norm(model, [torch.full((2, 3, 8, 8), torch.nan)])
    assert torch.equal(model[1].running_mean, before)
    assert not model[1]._forward_hooks

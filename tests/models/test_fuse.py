"""Deploy form: the same outputs to 1e-5, whatever the stride, rank, bias and normalisation; nothing folded wrongly."""

import copy

import pytest
import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d as Detectron2FrozenBatchNorm
from torch import nn
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm

from norton_det.models.fuse import fuse
from norton_det.models.layers import CPConv2d
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

NORMS = [nn.BatchNorm2d, nn.SyncBatchNorm, TorchvisionFrozenBatchNorm, Detectron2FrozenBatchNorm]


def randomise(model: nn.Module) -> nn.Module:
    """Statistics and affine maps as training leaves them, so that folding has something to do."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            with torch.no_grad():
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
    return model.eval()


def assert_same_outputs(model: nn.Module, fused: nn.Module, *shape: int) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected, got = model(x), fused(x)
    assert expected.abs().max() > 1e-3
    assert (got - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def norms_left(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "BatchNorm" in type(module).__name__]


class ConvNorm(nn.Module):
    """A convolution and its normalisation under the usual names."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn1(self.conv1(x))


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: f"{norm.__module__.split('.')[0]}.{norm.__name__}")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rank", [None, 1, 2, 3])
def test_convolution_and_norm(rank, stride, bias, norm):
    conv = nn.Conv2d(4, 6, 3, stride, 1, bias=bias) if rank is None else CPConv2d(4, 6, 3, rank, stride, 1, bias)
    for model in (ConvNorm(conv, norm(6)), nn.Sequential(copy.deepcopy(conv), norm(6), nn.ReLU())):
        fused = fuse(randomise(model))
        assert_same_outputs(model, fused, 2, 4, 9, 9)
        assert not norms_left(fused)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_whole_network(rank, stride_in_1x1):
    spec = CompressionSpec.parse(rank, "[0.5]+[0.8]*19")
    model = randomise(NortonResNet(spec, 5, stride_in_1x1))
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    assert_same_outputs(model, fused, 2, 3, 64, 64)
    assert not norms_left(fused)
    assert not any(isinstance(module, CPConv2d) for module in fused.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_torchvision_network_and_single_layer():
    model = randomise(torchvision.models.resnet18(num_classes=3))
    fused = fuse(model)
    assert_same_outputs(model, fused, 1, 3, 64, 64)
    assert not norms_left(fused)
    layer = CPConv2d(3, 4, 3, 2, padding=1).eval()
    assert_same_outputs(layer, fuse(layer), 1, 3, 8, 8)


def test_real_network(real_weights):
    model = NortonResNet(CompressionSpec.dense(), num_classes=10).eval()
    model.load_state_dict({**model.state_dict(), **real_weights})
    assert_same_outputs(model, fuse(model), 1, 3, 64, 64)


class PreActivation(nn.Module):
    """The norm comes first here, under the same names and with equal widths."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1(self.bn1(x).relu())


class SharedConv(nn.Module):
    """One convolution for two levels, each with its own norm, as some detection heads have."""

    def __init__(self) -> None:
        super().__init__()
        conv = CPConv2d(4, 4, 3, 1, padding=1)
        plain = nn.Conv2d(4, 4, 1)
        self.first = nn.Sequential(conv, nn.BatchNorm2d(4), plain, nn.BatchNorm2d(4))
        self.second = nn.Sequential(conv, nn.BatchNorm2d(4), plain, nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) - self.second(x)


class ActivatedConv(nn.Conv2d):
    """A convolution that applies an activation of its own, as Detectron2's can."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "model",
    [
        PreActivation(),
        SharedConv(),
        ConvNorm(ActivatedConv(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)),
    ],
    ids=["pre-activation", "shared", "activated", "relu-between", "no-affine", "group-norm"],
)
def test_what_cannot_be_folded_is_left_alone(model):
    if isinstance(model, nn.Sequential) and not isinstance(model[1], nn.GroupNorm) and model[-1].weight is None:
        model.eval()
    else:
        randomise(model)
    assert_same_outputs(model, fuse(model), 2, 4, 8, 8)


def test_training_mode_is_refused():
    with pytest.raises(InputError, match=r"got training mode; call model.eval\(\) first"):
        fuse(NortonResNet(CompressionSpec.parse(1, "[0.9]*20"), 2).train())

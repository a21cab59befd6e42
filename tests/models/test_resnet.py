"""The ResNet: torchvision's network when dense, published params and MACs when compressed, strides and gradients."""

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from norton_det.models.layers import CPConv2d
from norton_det.models.presets import PRESETS
from norton_det.models.resnet import FEATURE_STRIDES, NortonResNet, ResidualBlock
from norton_det.models.spec import CompressionSpec

TINY = CompressionSpec.parse(1, "[0.75]+[0.9]*3+[0.85]*16")


def meta_network(spec: CompressionSpec, **options: object) -> NortonResNet:
    with torch.device("meta"):
        return NortonResNet(spec, **options).eval()


def count_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, size: int = 224) -> int:
    """MACs of convolutions and linear layers: half of PyTorch's FLOPs."""
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


# Published rows: exact where the ratios are published, else to the digits printed in the paper.
@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("dense", 25_557_032, 4_089_184_256),
        ("norton-64", 10_525_342, 1_473_518_000),
        ("norton-77", 7_960_930, 962_849_947),
        ("norton-78", 5_885_736, 899_619_808),
    ],
)
def test_exact_params_and_macs(name, params, macs):
    model = meta_network(CompressionSpec.preset(name))
    assert (count_params(model), count_macs(model)) == (params, macs)


@pytest.mark.parametrize(("name", "gmacs", "mparams"), [("norton-43", 2.32, 14.51), ("norton-50", 2.08, 13.51)])
def test_searched_presets_meet_the_published_row(name, gmacs, mparams):
    model = meta_network(CompressionSpec.preset(name))
    assert round(count_macs(model) / 1e9, 2) == gmacs
    assert round(count_params(model) / 1e6, 2) == mparams


def test_fvcore_counts_the_same():
    """An independent counter, on real tensors of a small network."""
    model = NortonResNet(TINY, num_classes=10).eval()
    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, 64, 64))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = analysis.by_operator()
    assert by_operator["conv"] + by_operator["linear"] == count_macs(meta_network(TINY, num_classes=10), 64)


@pytest.mark.parametrize("arch", ["resnet50", "resnet101"])
def test_dense_is_torchvision_key_for_key(arch):
    with torch.device("meta"):
        expected = getattr(torchvision.models, arch)().state_dict()
    ours = meta_network(CompressionSpec.dense(arch)).state_dict()
    assert list(ours) == list(expected)
    assert all(ours[name].shape == tensor.shape for name, tensor in expected.items())


def test_dense_computes_what_torchvision_computes(generator):
    reference = torchvision.models.resnet50(num_classes=10).eval()
    model = NortonResNet(CompressionSpec.dense(), num_classes=10).eval()
    model.load_state_dict(reference.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        assert torch.allclose(model(x), reference(x), atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_every_preset_has_its_channels_and_strides(name, stride_in_1x1):
    model = meta_network(CompressionSpec.preset(name), num_classes=0, stride_in_1x1=stride_in_1x1)
    features = model.forward_features(torch.empty(1, 3, 96, 128, device="meta"))
    assert list(features) == list(FEATURE_STRIDES)
    for level, feature in features.items():
        stride = FEATURE_STRIDES[level]
        assert feature.shape == (1, model.feature_channels[level], 96 // stride, 128 // stride)
    assert model(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 2048, 1, 1)
    assert not hasattr(model, "fc")


def test_the_3x3_are_cp_layers_of_their_rank():
    spec = CompressionSpec.parse("[1]*8+[2]*8", "[0.]*20")
    blocks = [module for module in meta_network(spec).modules() if isinstance(module, ResidualBlock)]
    assert [block.conv2.rank for block in blocks] == [1] * 8 + [2] * 8
    assert all(isinstance(block.conv2, CPConv2d) for block in blocks)


def test_only_the_first_block_of_a_stage_projects_also_at_equal_widths():
    """norton-50's neighbour: 256 and 512 * 0.5 are equal, and the stride still needs a projection."""
    model = meta_network(CompressionSpec.parse(1, "[0.,0.,0.5,0.75]+[0.]*16"))
    assert model.feature_channels["res2"] == model.feature_channels["res3"] == model.feature_channels["res4"] == 256
    for stage in range(1, 5):
        blocks = model.get_submodule(f"layer{stage}")
        assert [block.downsample is not None for block in blocks] == [True] + [False] * (len(blocks) - 1)
    assert model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)


@pytest.mark.parametrize("rank", [None, 1, 2])
def test_one_training_step_reaches_every_parameter(rank, generator):
    model = NortonResNet(CompressionSpec.parse(rank, list(TINY.ratios)), num_classes=4).train()
    loss = nn.functional.cross_entropy(
        model(torch.randn(4, 3, 64, 64, generator=generator)), torch.tensor([0, 1, 2, 3])
    )
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_fresh_cp_layer_keeps_the_variance(rank, generator):
    """Initialised as one convolution after a ReLU: second moment 1 in, 2 out (He et al., fan in)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            module
            for module in NortonResNet(CompressionSpec.parse(rank, "[0.]*20"), 0).layer2.modules()
            if isinstance(module, CPConv2d)
        ]
    energy = torch.stack(
        [layer(torch.randn(1, 128, 32, 32, generator=generator))[..., 2:-2, 2:-2].var() for layer in layers]
    )
    assert 1.2 < energy.mean() < 3.0


def test_features_are_not_overwritten_in_place(generator):
    """The block's in-place additions must not touch the feature map of the stage before."""
    model = NortonResNet(TINY, 0).eval()
    x = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        features = model.forward_features(x)
        partial = model.layer2(model.layer1(features["stem"]))
    assert torch.equal(partial, features["res3"])


def test_norm_is_the_callers_choice():
    model = NortonResNet(TINY, 0, norm=lambda width: nn.GroupNorm(1, width))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert isinstance(model.layer1[0].downsample[1], nn.GroupNorm)

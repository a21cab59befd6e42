"""Every ResNet in ``ARCHITECTURES`` goes the same road: torchvision's network, surgery, complexity by closed form."""

import copy
import re
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn

import norton_det as nd
from norton_det.compression.calibration import Calibration
from norton_det.compression.search.costs import CostModel, describe_network
from norton_det.models.architecture import ARCHITECTURES, IMAGE, Architecture, architecture
from norton_det.models.complexity import count_complexity
from norton_det.models.presets import PRESETS
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.models.spec_from_state import spec_from_state
from norton_det.utils.errors import InputError

BASIC = [name for name, arch in ARCHITECTURES.items() if arch.kind == "basic"]
LEVELS = [name for name in PRESETS if name != "dense"]


def on_meta(spec: CompressionSpec) -> NortonResNet:
    with torch.device("meta"):
        return NortonResNet(spec)


@pytest.fixture(scope="module")
def tiny() -> Iterator[str]:
    """A ResNet with basic blocks of other depths and widths than any of torchvision's: one more row of the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "tiny", Architecture("tiny", "basic", (1, 2, 1, 1), 12, (12, 16, 24, 32)))
        yield "tiny"


@pytest.fixture(scope="module")
def dense(tiny) -> NortonResNet:
    """That network, whose normalisations are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NortonResNet(CompressionSpec.dense(tiny), 10)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm()) and bool(expected.norm() > 0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(2))


# --- the dense network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_table_is_torchvisions_network(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    ours = on_meta(CompressionSpec.dense(name))
    shapes = [(key, tensor.shape) for key, tensor in theirs.state_dict().items()]
    assert [(key, tensor.shape) for key, tensor in ours.state_dict().items()] == shapes
    strides = {key: conv.stride for key, conv in theirs.named_modules() if isinstance(conv, nn.Conv2d)}
    assert {key: conv.stride for key, conv in ours.named_modules() if isinstance(conv, nn.Conv2d)} == strides
    arch = ARCHITECTURES[name]
    assert {site.name for site in arch.sites} == set(strides)
    for site in arch.sites:
        conv = theirs.get_submodule(site.name)
        assert (arch.widths[site.reads], arch.widths[site.writes]) == (conv.in_channels, conv.out_channels)
        assert conv.kernel_size == (site.kernel, site.kernel) and site.norm in dict(theirs.named_modules())
    assert spec_from_state(ours.state_dict()) == CompressionSpec.dense(name)


def test_basic_blocks_compute_what_torchvision_computes(images):
    reference = torchvision.models.resnet18(num_classes=10).eval()
    model = NortonResNet(CompressionSpec.dense("resnet18"), num_classes=10).eval()
    with torch.inference_mode():
        assert not close(model(images), reference(images), 0.1)
        model.load_state_dict(reference.state_dict())
        assert close(model(images), reference(images), 1e-6)


def test_the_stem_and_the_first_stage_of_basic_blocks_are_one_stream():
    for name, arch in ARCHITECTURES.items():
        streams = [channels for channels in arch.pruned if "." not in channels]
        assert streams == (["layer1", "layer2", "layer3"] if name in BASIC else ["conv1", "layer1", "layer2", "layer3"])
        assert arch.sites[0].reads == IMAGE and arch.sites[0].writes == streams[0]
    assert architecture("resnet18").projects(2, 0) and not architecture("resnet18").projects(1, 0)
    with pytest.raises(InputError, match=r"arch: expected one of resnet18, .*got 'vgg16'"):
        architecture("vgg16")


# --- compressed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("level", LEVELS)
def test_levels_save_what_their_name_says(name, level):
    """Complexity by closed form equals what is counted in the built network, and meets the level."""
    spec = CompressionSpec.preset(level, name)
    assert spec.arch == name and spec.name == level and spec_from_state(on_meta(spec).state_dict()) == spec
    found, dense = count_complexity(on_meta(spec)), count_complexity(on_meta(CompressionSpec.dense(name)))
    network = describe_network(on_meta(CompressionSpec.dense(name)), name, (3, 224, 224))
    choice = network.dense() | spec.left() | dict(zip(spec.architecture.factored, spec.ranks, strict=True))
    assert CostModel(network, "macs").total(choice) == found.macs
    assert CostModel(network, "params").total(choice) == found.params
    if name != "resnet50":  # there the published rows settle it, see test_resnet.py
        assert abs(100 * (1 - found.macs / dense.macs) - int(level.removeprefix("norton-"))) <= 0.5


@pytest.mark.parametrize("rank", [None, 2])
def test_dropping_channels_equals_zeroing_them(dense, images, rank):
    spec = CompressionSpec.parse(rank, "[0.4]+[0.3]*2+[0.6]*5", "tiny")
    small = nd.compress(dense, spec, starts=1)
    full = nd.compress(dense, CompressionSpec.parse(rank, None, "tiny"), starts=1).model
    state, kept = copy.deepcopy(full.state_dict()), small.report.kept
    for site in spec.architecture.sites:
        dropped = torch.ones(len(state[f"{site.norm}.weight"]), dtype=torch.bool)
        dropped[list(kept[site.writes])] = False
        for field in ("weight", "bias"):
            state[f"{site.norm}.{field}"][dropped] = 0
    with torch.no_grad():
        before = full(images)
        full.load_state_dict(state)
        assert close(small.model(images), full(images)) and not close(before, full(images), 0.1)
    assert {name: len(index) for name, index in kept.items()} == {
        name: width for name, width in spec.channels().items() if name != IMAGE
    }
    assert kept["layer1"] == tuple(sorted(kept["layer1"])) and len(kept["layer1"]) == 7
    assert "conv1" not in kept


def test_full_rank_is_the_dense_network(dense, images):
    result = nd.compress(dense, CompressionSpec.parse(9, None, "tiny"), starts=1)
    with torch.no_grad():
        assert close(result.model(images), dense(images), 1e-3)
    assert max(layer.nmse for layer in result.report.layers) < 1e-6


def test_calibration_brings_the_outputs_back(dense, images):
    spec, errors = CompressionSpec.parse(2, "[0.25]*8", "tiny"), []
    for calibration in (None, Calibration(images, compensate=False, decomposition="weight"), images):
        result = nd.compress(dense, spec, calibration=calibration, criterion="norm", starts=1)
        with torch.no_grad():
            errors.append(float((result.model(images) - dense(images)).square().mean()))
    assert errors[2] < 0.5 * min(errors[:2])
    assert set(result.report.errors) == {f"layer{stage}.{block}" for stage, block in spec.blocks()}
    css = nd.compress(dense, spec, calibration=images, starts=1)
    assert css.report.criterion == "css" and set(css.report.kept) == set(spec.architecture.widths) - {IMAGE}


def test_calibrated_without_loss_is_the_dense_network(dense, images):
    """Nothing is lost at full width and dense ranks, so the fit has to give back the weights' own outputs."""
    result = nd.compress(dense, CompressionSpec.dense("tiny"), calibration=images)
    with torch.no_grad():
        assert close(result.model(images), dense(images), 0.05)
    assert max(result.report.errors.values()) < 1e-2


def test_searched_saved_and_fused(dense, images, tmp_path):
    found = nd.search(dense, target_macs="50%", calibration=images)
    assert found.spec.arch == "tiny" and abs(found.reached / found.target - 1) <= 0.05
    assert re.search(r"layer1\.0\.conv1 ", found.table())
    model = nd.compress(dense, found.spec, starts=1).model
    nd.save_checkpoint(tmp_path / "small.safetensors", model)
    again = nd.load_checkpoint(tmp_path / "small.safetensors")
    assert again.spec == found.spec
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        assert close(nd.fuse(model)(images), model(images), 1e-5)


def test_rows_of_equal_depths_are_told_by_their_width():
    with pytest.MonkeyPatch.context() as patch:
        thin = Architecture("thin18", "basic", (2, 2, 2, 2), 32, (32, 64, 128, 256))
        patch.setitem(ARCHITECTURES, "thin18", thin)
        for arch in ("thin18", "resnet18"):
            assert spec_from_state(on_meta(CompressionSpec.dense(arch)).state_dict()).arch == arch


def test_a_row_without_levels_says_so(tiny):
    with pytest.raises(InputError, match="preset: expected one of dense, got 'norton-78'"):
        CompressionSpec.preset("norton-78", tiny)

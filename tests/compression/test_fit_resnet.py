"""Calibration: what a fit has to keep, what it must not touch, and that it works on real photographs."""

import pytest
import torch

from norton_det.checkpoint.load import load_weights
from norton_det.classification.accuracy import evaluate
from norton_det.compression.calibration import Calibration
from norton_det.compression.channel_statistics import channel_statistics
from norton_det.compression.resnet import compress, compress_detector_state
from norton_det.compression.sampling import rows_of
from norton_det.data.classes import ClassFolder
from norton_det.data.images import load_images
from norton_det.models.fuse import fuse
from norton_det.models.preprocessing import TORCHVISION
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

DENSE = NortonResNet(CompressionSpec.dense("resnet18"), 10)
HALF = CompressionSpec.parse(1, "[0.]+[0.5]*3+[0.75]*16")
WEIGHT_ONLY = {"compensate": False, "decomposition": "weight"}


@pytest.fixture(scope="module")
def images():
    """Smooth random pictures (24, 3, 64, 64)."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(24, 3, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(small, size=64, mode="bilinear")


@pytest.fixture(scope="module")
def dense(images):
    """A random ResNet-50 with the statistics of the pictures."""
    torch.manual_seed(0)
    model = NortonResNet(CompressionSpec.dense(), 7).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
                module.weight.uniform_(0.5, 1.0)
                module.bias.uniform_(-0.3, 0.3)
        model(images)
    return model.eval()


def distance(model, dense, images, kept=None):
    """Relative error of the last feature map."""
    with torch.no_grad():
        wanted, found = (net.forward_features(images)["res5"] for net in (dense, model))
    return float((found - wanted).square().sum() / wanted.square().sum())


def test_nothing_cut_is_nothing_lost(dense, images):
    """Without CP and without pruning the fits reproduce the network."""
    result = compress(dense, CompressionSpec.dense(), calibration=Calibration(images, rows=4096))
    assert distance(result.model, dense, images) < 1e-4
    assert max(result.report.errors.values()) < 1e-4
    with torch.no_grad():
        torch.testing.assert_close(result.model(images), dense(images), atol=2e-2, rtol=2e-2)


def test_each_switch_lowers_the_error(dense, images):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    pictures = images.clone()
    found = [distance(compress(dense, HALF).model, dense, images)]
    for switches in (WEIGHT_ONLY, {"decomposition": "weight"}, {}):
        calibration = Calibration(images, rows=2048, **switches)
        result = compress(dense, HALF, criterion="pabs", calibration=calibration)
        found.append(distance(result.model, dense, images))
        assert set(result.report.errors) == {f"layer{stage}.{block}" for stage, block in HALF.blocks()}
    assert found[2] < 0.5 * min(found[:2]) and found[3] < 1.02 * found[2], found
    assert torch.equal(images, pictures)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert dense.spec.is_dense and not dense.training


def test_batch_norm_alone_sets_the_true_statistics(dense, images):
    result = compress(dense, HALF, criterion="norm", calibration=Calibration(images, **WEIGHT_ONLY))
    plain = compress(dense, HALF, criterion="norm").model
    model, seen = result.model, {}
    for name in ("layer1.0.bn1", "layer3.2.bn2", "layer4.2.bn3", "layer4.0.downsample.1"):
        model.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: seen.update({name: x[0]}))
    with torch.no_grad():
        model(images)
    for name, values in seen.items():
        norm = model.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, values.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(norm.running_var, values.var((0, 2, 3), correction=0), atol=1e-4, rtol=1e-3)
    for (name, tensor), old in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(tensor, old), name  # no weight changes


def test_fitted_normalisation_holds_true_statistics(dense, images):
    """So that fine-tuning, which uses those of the batch, starts where the fit ended; and fuse still folds."""
    model = compress(dense, HALF, calibration=Calibration(images, rows=10**6)).model
    with torch.no_grad():
        fitted = model(images)
        assert (fuse(model)(images) - fitted).norm() < 1e-3 * fitted.norm()
        trained = model.train()(images)
    assert (trained - fitted).norm() < 0.05 * fitted.norm()


@pytest.mark.parametrize("rank", [None, (1,) * 14 + (2, 1)])
def test_other_ranks_and_strides(images, rank):
    torch.manual_seed(1)
    model = NortonResNet(CompressionSpec.dense(), 3, stride_in_1x1=True).eval()
    spec = CompressionSpec.parse(rank, "[0.1]+[0.3]*3+[0.8]*16")
    fitted = compress(model, spec, calibration=Calibration(images, rows=1024), stride_in_1x1=True).model
    plain = compress(model, spec, stride_in_1x1=True).model
    assert fitted.stride_in_1x1 and distance(fitted, model, images) < distance(plain, model, images)


def test_no_classifier(dense, images):
    state = {name: tensor for name, tensor in dense.state_dict().items() if not name.startswith("fc.")}
    model = compress(state, HALF, calibration=images[:8]).model
    assert model.num_classes == 0 and model(images[:2]).shape[1] == 2048


def test_laterals_of_a_detector_are_fitted(dense, images):
    """What the neck reads of the pruned network comes closer to what it reads of the dense one."""
    state = {f"backbone.bottom_up.{name}": tensor for name, tensor in dense.state_dict().items() if "fc" not in name}
    generator = torch.Generator().manual_seed(0)
    for level, channels in ((2, 256), (4, 1024)):
        state[f"backbone.fpn_lateral{level}.weight"] = torch.randn(16, channels, 1, 1, generator=generator)
        state[f"backbone.fpn_lateral{level}.bias"] = torch.randn(16, generator=generator)
    errors = []
    for switches in ({}, WEIGHT_ONLY):
        small, report = compress_detector_state(state, HALF, calibration=Calibration(images, rows=2048, **switches))
        model = NortonResNet(HALF, 0).eval()
        prefix = "backbone.bottom_up."
        model.load_state_dict({key[len(prefix) :]: t for key, t in small.items() if key.startswith(prefix)})
        with torch.no_grad():
            wide, narrow = dense.forward_features(images), model.forward_features(images)
        for level in (2, 4):
            name, feature = f"backbone.fpn_lateral{level}", f"res{level}"
            outs = [
                torch.nn.functional.conv2d(maps[feature], tensors[f"{name}.weight"], tensors[f"{name}.bias"])
                for tensors, maps in ((state, wide), (small, narrow))
            ]
            errors.append(float((outs[0] - outs[1]).square().mean() / outs[0].var()))
    assert errors[0] < 0.5 * errors[2] and errors[1] < 0.5 * errors[3], errors
    assert report.kept["layer4"] == tuple(range(2048))


def test_statistics_cover_what_is_pruned(dense, images):
    spec = CompressionSpec.parse(1, "[0.5]+[0.]+[0.5]*2+[0.]+[0.25]*15")
    found = channel_statistics(dense, spec, Calibration(images))
    assert {"conv1", "layer2", "layer3", "layer1.1.conv1", "layer4.2.conv2"} <= set(found)
    assert not {"layer1", "layer4", "layer1.0.conv1"} & set(found)
    group = found["layer1.1.conv1"]
    assert group.covariance.shape == (64, 64) and group.readers.shape == (9 * 64, 64)
    assert found["layer2"].readers.shape == (3 * 128 + 256 + 1024, 512)  # conv1 of 4 blocks, and a projection


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda x: Calibration(x[0]), r"expected \(N, 3, H, W\) with N > 0, got \(3, 64, 64\)"),
        (lambda x: Calibration(x[:0]), "with N > 0"),
        (lambda x: Calibration([1, 2]), "got list"),
        (lambda x: compress({}, HALF, calibration=x.numpy()), "got ndarray"),
        (lambda x: Calibration((255 * x).byte()), "expected floats, preprocessed, got torch.uint8"),
        (lambda x: compress(DENSE, HALF, calibration=50 * x), r"values of -2.1 to 2.6 .*got -\d+.\d to \d+.\d; prepro"),
        (lambda x: Calibration(x, device="gpu"), "device: expected one of this machine, such as cpu, got 'gpu'"),
        (lambda x: Calibration(x[:, :, :16]), "at least 32 x 32"),
        (lambda x: Calibration(x * torch.nan), "images: expected finite pixels"),
        (lambda x: Calibration(x, decomposition="svd"), "expected output or weight, got 'svd'"),
        (lambda x: Calibration(x, batch_norm=False), "leave batch_norm on"),
        (lambda x: Calibration(x, rows=0), "expected rows"),
    ],
)
def test_bad_input(images, make, pattern):
    with pytest.raises(InputError, match=pattern):
        make(images)


def test_css_needs_images(dense):
    with pytest.raises(InputError, match="criterion: css needs calibration images, got none"):
        compress(dense, HALF, criterion="css")


def test_activations_that_are_not_finite_are_named(dense, images):
    state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    state["layer3.1.bn2.running_var"].fill_(-1.0)  # a square root of less than nothing
    with pytest.raises(InputError, match=r"layer3\.1\.conv2: expected finite activations .*got NaN"):
        compress(state, HALF, criterion="norm", calibration=images)


def test_images_for_the_criterion_only(dense, images):
    calibration = Calibration(images, batch_norm=False, compensate=False, decomposition="weight")
    result = compress(dense, HALF, calibration=calibration)
    assert result.report.criterion == "css" and not result.report.errors
    index = torch.tensor(result.report.kept["layer2"])
    torch.testing.assert_close(result.model.layer2[1].bn3.running_var, dense.layer2[1].bn3.running_var[index])


def test_real_photographs(shared, real_weights_path):
    """norton-78 of a trained network is at chance before, and near the dense network after a few dozen images."""
    data, size = shared / "data" / "imagenette", {"size": 128, "resize": 160}
    loaded = load_weights(real_weights_path)
    val = ClassFolder(data / "val", 10, TORCHVISION, **size)
    chosen = [val[index] for index in range(0, len(val), 15)]
    batches = [(torch.stack([image for image, _ in chosen]), torch.tensor([label for _, label in chosen]))]
    images, broken, _ = load_images(data / "train", TORCHVISION, count=64, **size)
    assert not broken
    dense, spec = loaded.build(), CompressionSpec.preset("norton-78")
    before = evaluate(compress(dense, spec).model, batches).top1
    result = compress(dense, spec, calibration=Calibration(images, rows=4096, sweeps=2))
    after, wanted = evaluate(result.model, batches).top1, evaluate(dense, batches).top1
    assert before < 0.2 * wanted and after > wanted - 2.5, (before, after, wanted)  # of 100 photographs, in percent
    errors = {block: result.report.errors[block] for block in ("layer1.0", "layer2.3", "layer3.5", "layer4.2")}
    assert list(errors.values()) == pytest.approx([0.0101796, 0.0674585, 0.0496389, 0.0568917], rel=1e-3)


def test_sampling_is_even_and_repeatable(images):
    calibration = Calibration(images, rows=240)
    maps = torch.zeros(24, 2, 8, 8)
    first, second = (calibration.sampler()(maps) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (3, 240)
    assert torch.equal(first[0].bincount(), torch.full((24,), 10))
    assert len(torch.unique(first, dim=1).T) == 240  # no position twice
    assert rows_of(torch.arange(24 * 64.0).view(24, 1, 8, 8), first).flatten().unique().numel() == 240

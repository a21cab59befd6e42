"""Compression: dropping channels equals zeroing them, full rank equals the dense network, the input is untouched."""

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import norton_det as nd
from norton_det.compression.resnet import CompressionResult, compress, compress_detector_state, cut_laterals
from norton_det.models.architecture import ARCHITECTURES
from norton_det.models.description import NetworkInfo
from norton_det.models.keys import split_detector_state, torchvision_to_d2
from norton_det.models.preprocessing import MSRA, TORCHVISION
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

RATIOS = "[0.5]+[0.3]+[0.45]+[0.2]+[0.7]*8+[0.85]*8"
MIXED = CompressionSpec.parse("[2]*7+[1]*9", RATIOS)
PRUNED_ONLY = CompressionSpec.parse(None, RATIOS)
WHOLE = "[0.]*20"
RESNET50 = ARCHITECTURES["resnet50"]
PUBLISHED = {  # of paper.md, exact: parameters with a classifier of 1000 classes
    "norton-64": 10_525_342,
    "norton-77": 7_960_930,
    "norton-78": 5_885_736,
}


def resnet50(classes: int = 10) -> nn.Module:
    """torchvision's ResNet-50 whose normalisations are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.resnet50(num_classes=classes)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.0),
                (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Small networks: on a busy machine threads that wait for each other take many times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return resnet50()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def norton_78(dense) -> CompressionResult:
    return compress(dense, CompressionSpec.preset("norton-78"), starts=1)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm()) and bool(expected.norm() > 0)


def zeroed(state: dict[str, Tensor], kept: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The state of a ResNet in which the normalisation makes every channel that is not kept zero."""
    out = {name: tensor.clone() for name, tensor in state.items()}
    for writer, index in kept.items():
        if re.fullmatch(r"layer\d", writer):
            norms = [n.removesuffix(".weight") for n in out if re.fullmatch(writer + r"\.\d+\.bn3\.weight", n)]
            norms.append(f"{writer}.0.downsample.1")
        else:
            norms = [writer.replace("conv", "bn")]
        for norm in norms:
            dropped = torch.ones(len(out[f"{norm}.weight"]), dtype=torch.bool)
            dropped[list(index)] = False
            for field in ("weight", "bias"):
                out[f"{norm}.{field}"][dropped] = 0
    return out


@pytest.mark.parametrize("spec", [MIXED, PRUNED_ONLY], ids=["decomposed", "pruned only"])
def test_dropping_channels_equals_zeroing_them(dense, image, spec):
    small = compress(dense, spec, starts=1)
    full = compress(dense, CompressionSpec.parse(spec.rank, WHOLE), starts=1).model
    with torch.no_grad():
        before = full(image)
        full.load_state_dict(zeroed(full.state_dict(), small.report.kept))
        expected, found = full(image), small.model(image)
    assert close(found, expected)
    assert not close(before, expected, 0.1)  # the dropped channels were not idle
    widths = spec.widths()
    kept = {name: len(index) for name, index in small.report.kept.items()}
    assert kept["conv1"] == widths.stem == 32
    for stage, (width, inner) in enumerate(zip(widths.stages, widths.blocks, strict=True), 1):
        assert kept[f"layer{stage}"] == width
        for block, channels in enumerate(inner):
            assert kept[f"layer{stage}.{block}.conv1"] == kept[f"layer{stage}.{block}.conv2"] == channels
    assert len(kept) == 1 + 4 + 2 * 16
    for index in small.report.kept.values():
        assert list(index) == sorted(set(index))


def test_keep_all_is_the_decomposition_alone(dense, image):
    result = compress(dense, CompressionSpec.parse(1, WHOLE), starts=1)
    found, state = result.model.state_dict(), dense.state_dict()
    for name, tensor in found.items():
        if ".conv2." not in name:
            assert torch.equal(tensor, state[name]), name
    for name in ("layer1.0.conv2", "layer2.0.conv2", "layer3.5.conv2"):  # of other widths and strides
        layer = nd.CPConv2d.from_conv(dense.get_submodule(name), rank=1, starts=1)
        torch.testing.assert_close(result.model.get_submodule(name).to_weight(), layer.to_weight())
        assert result.model.get_submodule(name).vertical.stride[0] == dense.get_submodule(name).stride[0]
    with torch.no_grad():
        assert not close(result.model(image), dense(image), 0.1)
    errors = {layer.name: layer.nmse for layer in result.report.layers}
    decomposed = [name for name in errors if name.endswith("conv2")]
    assert len(decomposed) == 16 and all(0.1 < errors[name] < 1 for name in decomposed)
    assert all(error == 0 for name, error in errors.items() if name not in decomposed)


def test_full_rank_is_the_dense_network(image):
    model = resnet50()
    for stage in (3, 4):  # rank 9 takes long: most filters there are zero
        for block in model.get_submodule(f"layer{stage}"):
            block.conv2.weight.data[16:] = 0
    result = compress(model, CompressionSpec.parse(9, WHOLE), starts=1)
    with torch.no_grad():
        assert close(result.model(image), model(image))
    assert all(layer.nmse < 1e-8 for layer in result.report.layers)


def test_the_input_is_untouched_and_nothing_is_shared(dense):
    model, state = resnet50(), resnet50().state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    results = [compress(given, PRUNED_ONLY).model for given in (model, state)]
    for result in results:
        for tensor in result.state_dict().values():
            tensor.fill_(7)
    for given in (model.state_dict(), state):
        assert list(given) == list(before)
        for name, tensor in given.items():
            assert torch.equal(tensor, before[name]), name
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("classes", [1000, 10, 0])
def test_kinds_of_input_agree(classes):
    module = resnet50(classes or 10)
    state = {name: tensor for name, tensor in module.state_dict().items() if classes or not name.startswith("fc.")}
    own = NortonResNet(CompressionSpec.dense(), classes)
    own.load_state_dict(state)
    halves = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    expected = compress(state, PRUNED_ONLY).model
    assert expected.num_classes == classes and not expected.training
    assert ("fc.weight" in expected.state_dict()) == bool(classes)
    given: list[Any] = [own]
    if classes == 10:
        given += [module, halves, {name: tensor.double() for name, tensor in state.items()}]
        given += [{name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}]
    for source in given:
        found = compress(source, PRUNED_ONLY).model
        tolerance = {"rtol": 1e-3, "atol": 1e-3} if source is halves else {"rtol": 0, "atol": 0}
        for name, tensor in found.state_dict().items():
            assert tensor.dtype == (torch.int64 if name.endswith("tracked") else torch.float32), name
            if source is halves and name not in ("conv1.weight", "bn1.weight", "fc.weight"):
                continue  # rounding may turn the order of filters that score alike
            torch.testing.assert_close(tensor, expected.state_dict()[name], **tolerance)


def test_preprocessing_and_stride_follow_the_model():
    source = NortonResNet(CompressionSpec.dense(), 0, stride_in_1x1=True)
    source.preprocessing = MSRA
    result = compress(source, PRUNED_ONLY)
    assert result.model.preprocessing == MSRA and result.model.stride_in_1x1
    assert result.model.layer2[0].conv1.stride == (2, 2) and result.model.layer2[0].conv2.stride == (1, 1)
    other = compress(source, PRUNED_ONLY, preprocessing=TORCHVISION, stride_in_1x1=False).model
    assert other.preprocessing == TORCHVISION and other.layer2[0].conv2.stride == (2, 2)
    # before and after are counted with the stride in the same place
    same = nd.count_complexity(NortonResNet(CompressionSpec.dense(), 0, stride_in_1x1=True), (3, 224, 224)).macs
    assert result.report.macs[0] == same
    assert compress(source.state_dict(), PRUNED_ONLY).model.preprocessing == TORCHVISION


def refused(model: object, pattern: str, spec: CompressionSpec = PRUNED_ONLY, **options: object) -> None:
    with pytest.raises(InputError) as caught:
        compress(model, spec, **options)
    assert re.search(pattern, str(caught.value)) and "\n" not in str(caught.value), str(caught.value)


def test_what_cannot_be_compressed_is_refused_in_one_line(dense, norton_78):
    state = dense.state_dict()
    refused(norton_78.model, "expected dense weights, got CP factors; compress the dense network")
    refused(compress(dense, PRUNED_ONLY).model, r"conv1\.weight: expected shape \(64, 3, 7, 7\), got \(32, 3, 7, 7\)")
    refused(state | {"layer2.1.bn2.bias": torch.full((128,), torch.nan)}, "layer2.1.bn2.bias: expected finite weights")
    refused(torchvision.models.resnet18(), "as the model is, got one of resnet50; give arch='resnet18'")
    refused(
        torchvision.models.vgg11_bn(num_classes=2),
        "expected the blocks of a ResNet .*, found none",
    )
    refused(torchvision.models.resnet101(), "expected one of resnet101, as the model is, got one of resnet50")
    refused(dense, "expected a CompressionSpec or a preset's name, got 2; write norton-78", spec=2)
    refused({name: t for name, t in state.items() if name != "fc.bias"}, r"1 missing \(first: fc\.bias\)")
    refused({"epoch": 3} | state, "epoch: expected a tensor, got int; pass model.state_dict()")
    refused("resnet50.pth", "expected a ResNet or its state dict, got str")
    refused(dense, "criterion: expected one of .*pabs.*, got 'l1'", criterion="l1")
    refused(dense, "starts", spec=MIXED, starts=0)


@pytest.mark.parametrize("criterion", [name for name in nd.criteria() if name != "css"])  # css: test_reconstruct
def test_every_criterion(dense, norton_78, criterion):
    spec = CompressionSpec.preset("norton-78")
    result = norton_78 if criterion == "pabs" else compress(dense, spec, criterion=criterion, starts=1)
    assert result.report.criterion == criterion
    assert [len(index) for index in result.report.kept.values()] == [
        len(index) for index in norton_78.report.kept.values()
    ]
    if criterion != "pabs":
        assert result.report.kept != norton_78.report.kept
    if criterion in ("norm", "pabs_sum"):  # 1x1 convolutions go by the norm everywhere
        assert result.report.kept["layer3.2.conv1"] == norton_78.report.kept["layer3.2.conv1"]
    if criterion == "norm":
        norms = dense.state_dict()["layer3.2.conv1.weight"].flatten(1).norm(dim=1)
        best = sorted(norms.argsort(descending=True)[: len(result.report.kept["layer3.2.conv1"])].tolist())
        assert list(result.report.kept["layer3.2.conv1"]) == best


def test_same_seed_same_network(dense):
    first, again, other = (compress(dense, PRUNED_ONLY, criterion="random", seed=seed) for seed in (3, 3, 4))
    assert first.report.kept == again.report.kept != other.report.kept
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    state = torch.get_rng_state()
    compress(dense, PRUNED_ONLY, criterion="random")
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(InputError):
        compress(dense, MIXED, starts=0)
    compress(dense, PRUNED_ONLY)
    assert torch.get_num_threads() == 2  # and so is the number of threads
    torch.set_num_threads(threads)


def test_residual_streams_share_one_index_set(dense, norton_78):
    """A stream's score is the sum over all that write it, so its channels are those of all writers together."""
    state, kept = dense.state_dict(), norton_78.report.kept["layer2"]
    scores = torch.zeros(512, dtype=torch.double)
    for writer in ["layer2.0.downsample.0", *(f"layer2.{block}.conv3" for block in range(4))]:
        norms = state[f"{writer}.weight"].double().flatten(1).norm(dim=1)
        scores += norms / norms.mean()
    assert sorted(scores.argsort(descending=True)[: len(kept)].tolist()) == list(kept)
    small = norton_78.model.state_dict()
    for writer in ("layer2.0.downsample.0", "layer2.3.conv3"):
        assert small[f"{writer}.weight"].shape[0] == len(kept)
    index = torch.tensor(kept)
    torch.testing.assert_close(small["layer2.3.bn3.bias"], state["layer2.3.bn3.bias"][index], rtol=0, atol=0)


def test_report(norton_78):
    report = norton_78.report
    assert report.spec == CompressionSpec.preset("norton-78") and report.input_size == (3, 224, 224)
    assert report.macs == (
        nd.count_complexity(resnet50(), (3, 224, 224)).macs,
        nd.count_complexity(norton_78.model, (3, 224, 224)).macs,
    )
    assert report.params[1] == sum(parameter.numel() for parameter in norton_78.model.parameters())
    assert set(report.seconds) == {"decompose", "prune"} and all(value > 0 for value in report.seconds.values())
    layers = {layer.name: layer for layer in report.layers}
    assert len(layers) == len(report.layers) == 53
    assert layers["layer4.2.conv2"].rank == 1 and layers["layer4.2.conv2"].kept == 128
    assert layers["layer4.2.conv1"].rank is None
    fields = json.loads(json.dumps(report.to_dict()))
    assert set(fields) == {field.name for field in dataclasses.fields(report)}
    assert fields["kept"]["layer1"] == list(report.kept["layer1"])
    assert CompressionSpec.from_dict(fields["spec"]) == report.spec
    assert len(fields["layers"]) == 53 and fields["layers"][0]["name"] == "conv1"
    lines = report.table().splitlines()
    assert len(lines) == 1 + 53 + 2 and "layer4.2.conv2" in report.table()
    assert "5.88" not in report.summary() and "norton-78" in report.summary() and "pabs" in lines[-1]


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_parameters(preset):
    spec = dataclasses.replace(CompressionSpec.preset(preset), rank=None)  # factors are counted below
    result = compress(resnet50(1000), spec)
    decomposed = NetworkInfo(CompressionSpec.preset(preset), num_classes=1000).build()
    dense_3x3 = sum(t.numel() for n, t in result.model.named_parameters() if n.endswith("conv2.weight"))
    factors = sum(t.numel() for n, t in decomposed.named_parameters() if ".conv2." in n)
    assert result.report.params == (25_557_032, PUBLISHED[preset] + dense_3x3 - factors)


def test_published_row(norton_78):
    assert norton_78.report.params[1] == PUBLISHED["norton-78"] - 990 * 2049  # 10 classes instead of 1000
    assert norton_78.report.macs[1] == 899_619_808 - 990 * 2048


# --- detectors -------------------------------------------------------------------------------------------------------

DETECTOR_SPEC = PRUNED_ONLY


def normalised(model: nn.Module) -> nn.Module:
    """Frozen normalisations that are not the identity."""
    generator = torch.Generator().manual_seed(4)
    for module in model.modules():
        if type(module).__name__ == "FrozenBatchNorm2d":
            module.weight.uniform_(0.5, 1.0, generator=generator)
            module.bias.uniform_(-0.3, 0.3, generator=generator)
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
    return model.eval()


def d2_config(name: str, **keys: object):
    from norton_det.d2 import load_config

    opts = {"MODEL.WEIGHTS": "", **keys}
    return load_config(name, [word for key, value in opts.items() for word in (key, str(value))])


def d2_dense() -> nn.Module:
    from detectron2.modeling import build_model

    return build_model(d2_config("dense_faster_rcnn.yaml"))


def d2_stock() -> nn.Module:
    from detectron2.modeling import build_model

    return build_model(d2_config("dense_faster_rcnn.yaml", **{"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone"}))


def d2_small(spec: CompressionSpec) -> nn.Module:
    from detectron2.modeling import build_model

    keys = {"MODEL.NORTON.PRESET": "dense", "MODEL.NORTON.RATIOS": str(list(spec.ratios))}
    if spec.rank:
        keys["MODEL.NORTON.RANK"] = spec.rank
    return build_model(d2_config("norton_faster_rcnn.yaml", **keys)).eval()


def tv_dense() -> nn.Module:
    return torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, norm_layer=torchvision.ops.FrozenBatchNorm2d
    )


def tv_small(spec: CompressionSpec) -> nn.Module:
    from norton_det.tv import fasterrcnn_norton_resnet50_fpn

    return fasterrcnn_norton_resnet50_fpn(spec=spec).eval()


def without_counters(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Batch counters are in the state where the network has unfrozen normalisations; they may be left over or lack."""
    counters = {name: t for name, t in model.state_dict().items() if name.endswith("num_batches_tracked")}
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")} | counters


@pytest.mark.parametrize(
    ("stack", "build"), [("d2", d2_dense), ("d2", d2_stock), ("tv", tv_dense)], ids=["d2", "d2 stock", "torchvision"]
)
def test_detector_equals_the_masked_one(stack, build):
    if stack == "d2":
        pytest.importorskip("detectron2")
    model = normalised(build())
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    small_state, report = compress_detector_state(state, DETECTOR_SPEC)
    for name, tensor in state.items():
        assert torch.equal(tensor, before[name]), name

    small = (d2_small if stack == "d2" else tv_small)(DETECTOR_SPEC)
    small.load_state_dict(without_counters(small_state, small), strict=True)
    prefix, resnet, rest = split_detector_state(state)
    stock = "res2.0.conv1.weight" in {name.removeprefix(prefix) for name in state}
    rename = torchvision_to_d2 if stock else (lambda name: name)
    masked = {prefix + rename(name): tensor for name, tensor in zeroed(resnet, report.kept).items()}
    assert set(masked | rest) == set(state)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        plain = model.backbone(image)
        model.load_state_dict(masked | rest)
        expected, found = model.backbone(image), small.backbone(image)
    assert list(found) == list(expected)
    for name, features in expected.items():
        assert close(found[name], features), name
    assert not all(close(plain[name], features, 0.1) for name, features in expected.items())
    heads = [name for name in rest if "roi_heads" in name]
    assert heads and all(torch.equal(small_state[name], state[name]) for name in heads)


def tv_meta_state() -> dict[str, Tensor]:
    """A torchvision detector with uninitialised, finite weights."""
    return {name: torch.zeros_like(tensor, device="cpu") for name, tensor in tv_dense().state_dict().items()}


@pytest.mark.parametrize(
    "spelling",
    [
        lambda name: name,
        lambda name: "module." + name,  # of a distributed run
        lambda name: name.replace("inner_blocks.0.0.", "inner_blocks.0."),  # torchvision before 0.13
    ],
    ids=["today", "distributed", "before 0.13"],
)
def test_laterals_of_every_spelling_are_cut(spelling):
    state = {spelling(name): tensor for name, tensor in tv_meta_state().items()}
    small, report = compress_detector_state(state, PRUNED_ONLY)
    assert len(report.kept["layer1"]) == 179
    assert small[spelling("backbone.fpn.inner_blocks.0.0.weight")].shape == (256, 179, 1, 1)
    assert small[spelling("backbone.fpn.inner_blocks.3.0.weight")].shape == (256, 2048, 1, 1)


def test_a_neck_that_leaves_stages_out():
    """Which stage a lateral convolution reads is told by its width, not by its number."""
    weights = torch.arange(512.0).expand(256, 512)[:, :, None, None]
    kept = {f"layer{stage}": tuple(range(stage, 100)) for stage in range(1, 5)}
    out = cut_laterals({"backbone.fpn.inner_blocks.0.0.weight": weights, "rpn.head.bias": weights}, kept, RESNET50)
    assert out["backbone.fpn.inner_blocks.0.0.weight"][0, :, 0, 0].tolist() == list(range(2, 100))
    assert out["rpn.head.bias"] is weights
    with pytest.raises(InputError, match=r"fpn_lateral2\.weight: expected \(channels, 256 or .*got \(256, 100, 1, 1\)"):
        cut_laterals({"backbone.fpn_lateral2.weight": torch.zeros(256, 100, 1, 1)}, kept, RESNET50)


def test_detector_without_a_resnet_is_refused(norton_78):
    with pytest.raises(InputError, match="expected ResNet-18, -34, -50, -101 or -152 weights, got"):
        compress_detector_state({"backbone.features.0.weight": torch.zeros(1)}, PRUNED_ONLY)
    compressed = {f"backbone.body.{name}": tensor for name, tensor in norton_78.model.state_dict().items()}
    with pytest.raises(InputError, match="expected dense weights, got CP factors"):
        compress_detector_state(compressed, PRUNED_ONLY)

"""Tuning: every variant is the same map, the fastest is in place, nothing else changes, the report adds up."""

import copy
import importlib
import json

import pytest
import torch
from torch import nn

from norton_det.deploy.graph import to_graph
from norton_det.deploy.layer_variants import make_variant, variant_names
from norton_det.deploy.tune import tune
from norton_det.models.factorize import wrap_like
from norton_det.models.fuse import fuse
from norton_det.models.layers import CPConv2d, LowRankLinear
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError
from norton_det.utils.timing import Timing
from tests.models.test_fuse import randomise

module = importlib.import_module("norton_det.deploy.tune")  # the package has the function under this name


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def assert_close(got, expected) -> None:
    got, expected = got.detach(), expected.detach()
    assert expected.abs().max() > 1e-3
    assert (got - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.fixture
def clock(monkeypatch):
    """Instead of the clock: seconds by variant name; asked for by tests that need to know who is the fastest."""
    seconds: dict[str, float] = {}

    def measure(candidates, *, rounds, warmup, device, progress=False):
        found = {}
        for name, call in candidates.items():
            with torch.inference_mode():
                call()
            found[name] = Timing((seconds.get(name, 1.0),) * rounds)
        return found

    monkeypatch.setattr(module, "measure", measure)
    return seconds


class Pyramid(nn.Module):
    """One convolution on two levels, as an RPN's, and a layer that is used under two names."""

    def __init__(self, rank: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.shared = CPConv2d(8, 8, 3, rank, padding=1)
        self.again = self.shared
        self.lists = [self.shared]

    def forward(self, x):
        x = self.first(x)
        return self.shared(x).mean() + self.lists[0](x[:, :, ::2, ::2]).mean() + self.again(x).std()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_variant_of_a_convolution_is_the_same_map(rank, stride, bias):
    layer = CPConv2d(5, 7, (3, 5), rank, stride, (1, 0), bias).eval()
    if bias:
        nn.init.normal_(layer.bias)
    x = noise(2, 5, 9, 11)
    for name in variant_names(layer):
        for variant in (make_variant(layer, name), make_variant(layer, name).to(memory_format=torch.channels_last)):
            assert_close(variant(x), layer(x))
            assert not {id(p) for p in variant.parameters()} & {id(p) for p in layer.parameters()}
    assert len(variant_names(layer)) == (3 if rank == 1 else 5)


def test_every_variant_of_a_matrix_is_the_same_map():
    for bias in (True, False):
        layer = LowRankLinear(12, 9, 4, bias)
        for name in variant_names(layer):
            assert_close(make_variant(layer, name)(noise(6, 12)), layer(noise(6, 12)))


@pytest.mark.parametrize("fastest", ["fused", "factored", "branches", "stacked", "dense"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_classifier_in_every_variant(rank, fastest, clock):
    clock[fastest] = 0.5
    model = randomise(NortonResNet(CompressionSpec.parse(rank, "[0.5]+[0.9]*19"), 5))
    before = copy.deepcopy(model.state_dict())
    x = noise(1, 3, 64, 64)
    model, report = (result := tune(model, x)).model, result.report
    original = NortonResNet(CompressionSpec.parse(rank, "[0.5]+[0.9]*19"), 5).eval()
    original.load_state_dict(before)
    assert_close(model(x), original(x))
    expected = fastest if fastest in report.layers[0].ms else "fused"
    assert report.choices == {f"layer{s}.{b}.conv2": expected for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n)}
    assert not any(isinstance(each, nn.BatchNorm2d) for each in model.modules())
    assert sum(isinstance(each, CPConv2d) for each in model.modules()) == (16 if expected == "factored" else 0)


def test_the_input_is_untouched_and_shares_nothing():
    model = randomise(NortonResNet(CompressionSpec.parse(2, "[0.5]+[0.9]*19"), 5))
    before, hooks = copy.deepcopy(model.state_dict()), [len(each._forward_pre_hooks) for each in model.modules()]
    new = tune(model, noise(1, 3, 32, 32), rounds=1).model
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(before[name], after[name]) for name in before)
    assert [len(each._forward_pre_hooks) for each in model.modules()] == hooks
    assert all(weight.is_contiguous() for weight in model.parameters())
    assert not {weight.data_ptr() for weight in new.parameters()} & {weight.data_ptr() for weight in model.parameters()}
    assert not new.training


def test_by_the_real_clock_the_fastest_is_chosen_and_the_report_adds_up():
    model = randomise(NortonResNet(CompressionSpec.parse(2, "[0.]+[0.6]*19"), 5))
    baseline = randomise(NortonResNet(CompressionSpec.dense(), 5))
    report = tune(model, noise(1, 3, 32, 32), baseline=baseline, rounds=3).report
    assert len(report.layers) == 16
    for layer in report.layers:
        best, ms = min(layer.ms.values()), layer.ms
        if report.result != "fused":
            assert ms[layer.choice] == best or (layer.choice == "fused" and best >= 0.97 * ms["fused"])
        assert [n for _, _, n in layer.calls] == [1] and set(ms) == set(variant_names(model.layer1[0].conv2))
    sums = report.sums
    assert sums["chosen"] == pytest.approx(sum(layer.ms[layer.choice] for layer in report.layers))
    assert sums["dense"] == pytest.approx(sum(layer.ms["dense"] for layer in report.layers))
    assert {"given", "fused", "tuned", "baseline", "baseline, fused"} <= set(report.whole) == set(report.medians)
    assert report.whole[report.result] <= min(report.whole["tuned"], report.whole["fused"] / 0.97)
    assert json.loads(json.dumps(report.to_dict()))["sums"] == sums
    text = report.table()
    assert "layer4.2.conv2" in text and "<- the new model" in text and f"{sums['chosen']:.3f} as chosen" in text


def test_a_layer_is_decided_by_the_sum_over_its_calls(clock, monkeypatch):
    """Dense wins on the small map, the factored variants on the large one, and the large one weighs more."""
    slow = {"fused": 8.0, "factored": 5.0, "dense": 6.0}
    quick = {"fused": 1.0, "factored": 3.0, "dense": 1.5}

    def measure(candidates, *, rounds, **_):
        if "dense" not in candidates:
            return {name: Timing((1.0,)) for name in candidates}
        large = next(iter(candidates.values())).args[0].shape[-1] == 16
        return {name: Timing(((slow if large else quick)[name],)) for name in candidates}

    monkeypatch.setattr(module, "measure", measure)
    model = randomise(Pyramid())
    result = tune(model, noise(1, 3, 16, 16), memory_format="keep")
    (layer,) = result.report.layers
    assert layer.calls == (((1, 8, 16, 16), False, 2), ((1, 8, 8, 8), False, 1))
    assert layer.ms == {"fused": 17e3, "factored": 13e3, "dense": 13.5e3}
    assert layer.choice == "factored"
    new = result.model
    assert new.shared is new.again is new.lists[0] and new.shared is not model.shared
    assert_close(new(noise(1, 3, 16, 16)), model(noise(1, 3, 16, 16)))


@pytest.mark.parametrize(("seconds", "choice"), [(0.98, "fused"), (0.96, "dense"), (1.5, "fused")])
def test_noise_does_not_flip_the_choice(clock, seconds, choice):
    clock["dense"] = seconds
    report = tune(nn.Sequential(CPConv2d(4, 4, 3)).eval(), noise(1, 4, 8, 8)).report
    assert report.choices == {"0": choice}


def test_the_whole_model_is_checked_against_fuse_and_the_baseline(clock):
    model, baseline = nn.Sequential(CPConv2d(4, 4, 3)).eval(), nn.Sequential(nn.Conv2d(4, 4, 3)).eval()
    clock |= {"dense": 0.5, "fused": 0.8, "baseline": 0.6}
    result = tune(model, noise(1, 4, 8, 8), baseline=baseline)
    assert result.report.result == "fused" and result.report.choices == {"0": "fused"}
    assert result.report.slower == {"baseline": pytest.approx(0.8 / 0.6)}
    assert "slower than baseline: 1.333 times its time" in result.report.table()
    assert [type(each) for each in result.model[0]] == [nn.Conv2d, nn.Conv2d]
    clock |= {"tuned": 0.7, "tuned, channels last": 0.5}
    result = tune(model, noise(1, 4, 8, 8), baseline=baseline)
    assert result.report.result == "tuned, channels last" and result.report.channels_last
    assert result.report.choices == {"0": "dense"} and type(result.model[0]) is nn.Conv2d
    assert not result.report.slower
    assert not result.model[0].weight.is_contiguous() and model[0].pointwise.weight.is_contiguous()
    assert tune(model, noise(1, 4, 8, 8), memory_format="keep").model[0].weight.is_contiguous()
    assert not tune(model, noise(1, 4, 8, 8), memory_format="channels_last").model[0].weight.is_contiguous()


class Viewing(nn.Module):
    """It views its map as rows, which channels-last maps do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = CPConv2d(4, 4, 3)

    def forward(self, x):
        return self.conv(x).view(len(x), -1)


def test_a_model_that_does_not_take_channels_last_keeps_its_format(clock):
    clock["dense"] = 0.1
    report = tune(Viewing().eval(), noise(2, 4, 8, 8)).report
    assert not report.channels_last and "tuned, channels last" not in report.whole
    model = nn.Sequential(CPConv2d(4, 4, 3)).eval().to(memory_format=torch.channels_last)
    x = noise(2, 4, 8, 8).to(memory_format=torch.channels_last)
    result = tune(model, x)
    assert result.report.layers[0].calls == (((2, 4, 8, 8), True, 1),)
    assert result.report.channels_last and list(result.report.whole) == ["given", "fused", "tuned"]


def test_single_layers_wrapped_layers_and_layers_that_are_not_called(clock):
    clock["dense"] = 0.5
    layer = CPConv2d(4, 6, 3, 2).eval()
    new = tune(layer, noise(1, 4, 8, 8)).model
    assert isinstance(new, nn.Conv2d)
    assert_close(new(noise(1, 4, 8, 8)), layer(noise(1, 4, 8, 8)))
    old = nn.Conv2d(4, 6, 3)
    old.norm, old.activation = nn.BatchNorm2d(6), torch.relu  # as Detectron2's convolutions
    model = randomise(nn.Sequential(wrap_like(old, layer), nn.Flatten(), LowRankLinear(216, 5, 2)))
    result = tune(model, noise(1, 4, 8, 8))
    assert result.report.choices == {"0.conv": "dense", "2": "dense"}
    assert [type(each).__name__ for each in result.model.modules()].count("BatchNorm2d") == 0
    assert_close(result.model(noise(1, 4, 8, 8)), model(noise(1, 4, 8, 8)))
    viewing = Viewing().eval()
    viewing.idle = CPConv2d(4, 4, 3)
    report = tune(viewing, noise(1, 4, 8, 8)).report
    assert report.layers[1].ms == {} and report.choices == {"conv": "dense", "idle": "fused"}


def small_detector():
    """A torchvision Faster R-CNN at 128 px whose ResNet, neck, RPN and box head are factored."""
    from norton_det.models.factorize import apply_layout, find_candidates
    from norton_det.tv import fasterrcnn_norton_resnet50_fpn

    torch.manual_seed(0)
    options = {"min_size": 128, "max_size": 128, "rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.0}
    model = fasterrcnn_norton_resnet50_fpn(spec=CompressionSpec.parse(1, "[0.5]+[0.9]*19"), num_classes=3, **options)
    ranks = {"box": 8, "neck": 2, "rpn": 1}
    return apply_layout(model, {each.name: ranks[each.part] for each in find_candidates(model)}, "empty").eval()


@pytest.mark.parametrize("fastest", ["branches", "dense"])
def test_torchvision_detector_and_its_graph(clock, fastest):
    clock[fastest] = 0.5
    detector = small_detector()
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(3))
    result = tune(detector, [image])
    calls = {layer.name: layer.calls for layer in result.report.layers}
    assert len(calls) == 16 + 4 + 1 + 2
    assert [shape[2] for shape, _, _ in calls["rpn.head.conv.0.0"]] == [32, 16, 8, 4, 2]
    assert result.report.choices["backbone.fpn.layer_blocks.0.0"] == fastest
    assert result.report.choices["roi_heads.box_head.fc6"] == ("dense" if fastest == "dense" else "factored")
    with torch.inference_mode():
        x = image[None]
        expected, got = detector.backbone(x), result.model.backbone(x)
        for name in expected:
            assert_close(got[name], expected[name])
        heads = result.model.rpn.head(list(got.values())), detector.rpn.head(list(expected.values()))
        for ours, theirs in zip(*heads, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert_close(a, b)
        pooled = noise(6, 256, 7, 7)
        assert_close(result.model.roi_heads.box_head(pooled), detector.roi_heads.box_head(pooled))
        assert set(result.model([image])[0]) == {"boxes", "labels", "scores"}


def test_detector_graph(clock):
    clock["dense"] = 0.5
    graph = to_graph(small_detector()).eval()
    image = 255 * torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(3))
    result = tune(graph, image)
    assert set(result.report.choices.values()) == {"dense"} and len(result.report.layers) == 23
    with torch.inference_mode():
        for ours, theirs in zip(result.model.backbone(image / 255), graph.backbone(image / 255), strict=True):
            assert_close(ours, theirs)
        assert [each.shape[1:] for each in result.model(image)] == [each.shape[1:] for each in graph(image)]


def test_without_factored_layers_the_fused_copy_and_an_empty_report():
    model = randomise(NortonResNet(CompressionSpec.parse(1, "[0.5]+[0.9]*19"), 5))
    plain = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    result = tune(plain, noise(1, 3, 8, 8))
    assert result.report.layers == () and not result.report.whole and result.report.sums == {"chosen": 0}
    assert_close(result.model(noise(1, 3, 8, 8)), plain(noise(1, 3, 8, 8)))
    assert isinstance(result.model[1], nn.Identity) and "nothing to choose" in result.report.table()
    assert tune(fuse(model), noise(1, 3, 32, 32)).report.layers == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": True}, r"tune: expected a model in eval mode, got training mode; call model.eval\(\) first"),
        (
            {"x": noise(1, 5, 8, 8)},
            r"example: expected what the model takes, got \(1, 5, 8, 8\) torch.float32 \(Runtime",
        ),
        ({"x": {"image": 3}}, r"example: expected what the model takes, got dict \(TypeError: "),
        ({"baseline": nn.Linear(3, 3).eval()}, "example: expected what the baseline takes, got "),
        ({"baseline": nn.Linear(3, 3)}, "tune: expected a baseline in eval mode"),
        ({"memory_format": "nhwc"}, "memory_format: expected auto, keep or channels_last, got 'nhwc'"),
        ({"margin": 1.5}, "margin: expected 0 or more and less than 1, got 1.5"),
        ({"rounds": 0}, "rounds: expected 1 or more, got 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(options, message):
    options = dict(options)
    model = nn.Sequential(CPConv2d(4, 4, 3)).train(options.pop("train", False))
    with pytest.raises(InputError, match=f"^{message}") as caught:
        tune(model, options.pop("x", noise(1, 4, 8, 8)), **options)
    assert "\n" not in str(caught.value)

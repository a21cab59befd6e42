"""The three examples of docs/extend.md run, in order, and do what the page says."""

import re

import pytest
import torch

import norton_det as nd
from norton_det.compression import criteria as pruning_criteria

registry = pytest.importorskip("detectron2.modeling").BACKBONE_REGISTRY


@pytest.fixture(scope="module")
def blocks(repository) -> list[str]:
    text = (repository / "docs/extend.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)


@pytest.fixture(scope="module")
def ran(blocks):
    """The names that the blocks leave behind; what they register is taken out again."""
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning_criteria, "_CRITERIA", dict(pruning_criteria._CRITERIA))
        patch.setattr(registry, "_obj_map", dict(registry._obj_map))
        for block in blocks:
            exec(compile(block, "docs/extend.md", "exec"), names)
    return names


def test_they_are_short(blocks):
    lengths = [sum(bool(line.strip()) for line in block.splitlines()) for block in blocks]
    assert len(lengths) == 3 and max(lengths) <= 42  # about forty lines


def test_criterion(ran):
    kept, weight = ran["kept"], ran["resnet"].layer2[1].conv1.weight.detach().double().flatten(1)
    scores = torch.stack([(weight - row).norm(dim=1).sum() for row in weight])
    best = scores.argsort(descending=True)[:92].sort().values.tolist()
    assert list(kept["far"]["layer2.1.conv1"]) == best != list(kept["norm"]["layer2.1.conv1"])


def test_decomposition(ran):
    assert 0.3 < ran["before"] < 1 and ran["after"] < ran["before"] / 4
    layer, conv, maps = ran["layer"], ran["conv"], ran["inputs"]
    assert ran["faster"].rpn.head.conv[0][0] is layer
    with torch.no_grad():  # its own error on the maps it was fitted to, formed here without moments
        rows = [(ran["rows"](layer(each)), ran["rows"](conv(each))) for each in maps]
    mine, dense = (torch.cat(part).double() for part in zip(*rows, strict=True))
    error = (mine - dense).square().sum() / (dense - dense.mean(0)).square().sum()
    assert abs(float(error) - ran["after"]) < 1e-3


def test_backbone(ran):
    for detector in ran["detectors"]:
        factored = [name for name, module in detector.named_modules() if isinstance(module, nd.CPConv2d)]
        assert len([name for name in factored if name.startswith("backbone.")]) == 4
        assert len(factored) == 5  # and the RPN's
    assert ran["small"]["backbone"] < 0.25 * ran["dense"]["backbone"]
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    theirs, own = ran["detectors"][1], nd.fuse(ran["detectors"][1])
    with torch.no_grad():
        assert torch.allclose(theirs.backbone(image[None])["0"], own.backbone(image[None])["0"], atol=1e-5)
        assert set(own([image])[0]) == {"boxes", "labels", "scores"}
        assert "instances" in ran["detectors"][0]([{"image": 255 * image}])[0]

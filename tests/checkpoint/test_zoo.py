"""The zoo: its figures are those of the counter, the paper and docs/results.md; downloads are checked."""

import hashlib
import http.server
import io
import json
import logging
import re
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from norton_det.checkpoint import zoo, zoo_table
from norton_det.checkpoint.load import load_weights
from norton_det.checkpoint.sources import local
from norton_det.checkpoint.zoo_table import DETECTIONS, ENTRIES, LEVELS, NETWORKS, ON_OTHERS, OTHERS, Entry, Weights
from norton_det.commands.main import main
from norton_det.models.architecture import ARCHITECTURES
from norton_det.models.complexity import count_complexity
from norton_det.models.presets import PRESETS
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

OWN = [entry for entry in ENTRIES if not entry.origin]


def test_every_level_of_every_network_is_there():
    assert set(LEVELS) == {"dense", *PRESETS}
    names = [entry.name for entry in zoo.entries()]
    assert len(set(names)) == len(names) == len(LEVELS) * (len(NETWORKS) + len(OTHERS)) + 2 * len(ON_OTHERS) + 3
    assert {name for name in ARCHITECTURES if name not in NETWORKS} == set(OTHERS)
    assert {f"{level}/{network}" for level in LEVELS for network in NETWORKS} <= set(names)
    for name in names:
        assert zoo.find(name).name == name


def counted(model: torch.nn.Module, entry: Entry) -> tuple[int, int]:
    """MACs and parameters as the table has them."""
    size = (3, 224, 224) if entry.network.startswith("resnet") else (3, 800, 800)
    counts = DETECTIONS.get(entry.network, 0)
    found = count_complexity(model, size, detections=max(1, counts))
    return found.macs - (0 if counts else found.parts.get("mask_head", 0)), found.params


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.name)
def test_figures_are_those_of_the_counter_and_near_the_published(entry):
    from norton_det import tv

    kind, _, depth = entry.network.partition("resnet")
    spec = CompressionSpec.preset(entry.level, f"resnet{depth or 50}")
    with torch.device("meta"):
        if not kind:
            model: torch.nn.Module = NortonResNet(spec)
        else:
            model = getattr(tv, f"{kind.replace('_', '')}_norton_resnet50_fpn")(spec=spec)
    assert counted(model, entry) == (entry.macs, entry.params)
    if entry.published_macs is not None:
        assert entry.macs / 1e9 == pytest.approx(entry.published_macs, rel=0.025)
        assert entry.params / 1e6 == pytest.approx(entry.published_params, rel=0.003)


@pytest.mark.parametrize("network", NETWORKS[1:])
def test_figures_of_detectron2s_baselines(network):
    pytest.importorskip("detectron2")
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    entry = zoo.find(f"dense-detectron2/{network}")
    config = entry.weights.url.split("detectron2/")[1].rpartition("/")[0].rpartition("/")[0] + ".yaml"
    assert model_zoo.get_checkpoint_url(config) == entry.weights.url
    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    assert counted(build_model(cfg), entry) == (entry.macs, entry.params)


def test_torchvisions_files_are_the_ones_that_it_loads_itself():
    from torchvision.models import detection, get_model_weights

    urls = {
        **{arch: get_model_weights(arch)["IMAGENET1K_V1"].url for arch in ARCHITECTURES},
        "faster_rcnn": detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url,
        "mask_rcnn": detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url,
        "keypoint_rcnn": detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.url,
    }
    for network, url in urls.items():
        weights = zoo.find(f"dense/{network}").weights
        assert weights.url == url and url.endswith(f"-{weights.sha256}.pth")


def test_measured_figures_are_in_the_results(repository):
    lines = (repository / "docs" / "results.md").read_text().splitlines()
    for entry in ENTRIES:
        for text in entry.measured:
            for value in re.findall(r"\d+\.\d", text):
                assert any(line.startswith("|") and f"| {value}" in line for line in lines), (entry.name, value)


def test_configs(repository):
    for entry in ENTRIES:
        if entry.config:
            text = zoo.config_path(entry.name).read_text()
            assert re.search(f"PRESET: {entry.level}|_BASE_: {entry.level.removesuffix('-78')}_faster_rcnn.yaml", text)
            assert Path(entry.config).stem.endswith(entry.network)
    with pytest.raises(InputError, match="dense/resnet50: expected a detector with a config"):
        zoo.config_path("dense/resnet50")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("norton-78/faster_rcn", r"got 'norton-78/faster_rcn'; did you mean norton-78/faster_rcnn"),
        ("xyzzy", "got 'xyzzy'; see norton-det zoo"),
    ],
)
def test_an_unknown_name_is_one_line(name, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        zoo.find(name)
    assert "\n" not in str(caught.value)


# --- downloads -------------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """``served(kind)``: weights test/resnet50 of a server on the loopback, with a checksum of that kind; its file."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NORTON_DET_ZOO", str(tmp_path / "zoo"))

    def put(kind: str, content: bytes = b"weights" * 1000) -> Path:
        file = folder / "own.pth"
        file.write_bytes(content)
        sha256, md5 = hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest()
        known = {"prefix": {"sha256": sha256[:8]}, "full": {"sha256": sha256}, "md5": {"md5": md5[:6]}, "none": {}}[
            kind
        ]
        weights = Weights(f"http://127.0.0.1:{server.server_port}/own.pth", "test", **known)
        entry = replace(zoo.find("dense/resnet50"), level="test", weights=weights)
        monkeypatch.setattr(zoo, "ENTRIES", (*zoo_table.ENTRIES, entry))
        return file

    yield put
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["prefix", "full", "md5", "none"])
def test_weights_are_loaded_once_and_checked_each_time(served, tmp_path, kind):
    source = served(kind)
    file = zoo.weights_path("test/resnet50", progress=False)
    assert file == tmp_path / "zoo" / "own.pth" and file.read_bytes() == source.read_bytes()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert (tmp_path / "zoo" / "own.pth.sha256").read_text() == f"{digest}  own.pth\n"
    assert sorted(path.name for path in file.parent.iterdir()) == ["own.pth", "own.pth.sha256"]
    source.unlink()
    assert zoo.weights_path("test/resnet50") == file  # not loaded again
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"own\.pth: .*expected") as caught:
        zoo.weights_path("test/resnet50")
    assert "\n" not in str(caught.value) and file.exists()  # it may be somebody's


@pytest.mark.parametrize("kind", ["prefix", "md5"])
def test_a_wrong_download_is_not_kept(served, tmp_path, kind):
    served(kind).write_bytes(b"something else")
    with pytest.raises(InputError, match=r"own\.pth: expected (SHA-256|MD5) \w+\.\.\., as test says, got .* not kept"):
        zoo.weights_path("test/resnet50", progress=False)
    assert not list((tmp_path / "zoo").iterdir())


def test_no_network_is_one_line(served, tmp_path):
    served("full").unlink()
    with pytest.raises(
        InputError, match=r"own\.pth: expected to load it, got File not found; run it again, or put own\.pth into"
    ) as caught:
        zoo.weights_path("test/resnet50", progress=False)
    assert "\n" not in str(caught.value) and not list((tmp_path / "zoo").iterdir())


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("norton-78/resnet50", "found none of a known name; look at https://github.com/pvti/NORTON/releases"),
        ("norton-43/mask_rcnn", "expected published weights, found none.*; train norton-43_mask_rcnn.yaml"),
    ],
)
def test_weights_that_nobody_publishes(name, pattern):
    with pytest.raises(InputError, match=pattern):
        zoo.weights_path(name)


def test_another_folder_and_the_default_one(served, tmp_path, monkeypatch):
    served("full")
    assert zoo.weights_path("test/resnet50", tmp_path / "there", progress=False).parent == tmp_path / "there"
    monkeypatch.delenv("NORTON_DET_ZOO")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert zoo.folder_of_weights() == tmp_path / "home" / "hub" / "checkpoints"


def test_zoo_names_stand_for_weights(served, tmp_path):
    state = NortonResNet(CompressionSpec.dense(), num_classes=3).state_dict()
    torch.save(state, tmp_path / "own.pth")
    served("full", (tmp_path / "own.pth").read_bytes())
    loaded = load_weights("zoo://test/resnet50")
    assert loaded.num_classes == 3 and torch.equal(loaded.state["fc.bias"], state["fc.bias"])
    assert local(Path("zoo://test/resnet50")) == tmp_path / "zoo" / "own.pth"
    assert local("own.pth") == "own.pth" and local("torchvision://resnet50") == "torchvision://resnet50"
    with pytest.raises(InputError, match="did you mean test/resnet50"):
        load_weights("zoo://test/resnet5")


def test_a_detector_of_the_zoo(served):
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    from norton_det.deploy.loading import load_detector

    content = io.BytesIO()
    dense = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.save(dense.state_dict(), content)
    served("full", content.getvalue())
    found = load_detector("zoo://test/resnet50")
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(found.state_dict()[name], dense.state_dict()[name])


# --- the commands ----------------------------------------------------------------------------------------------------


def test_the_command(served, tmp_path, capsys):
    served("prefix")
    assert main(["zoo"]) is None
    out = capsys.readouterr().out
    assert all(entry.name in out for entry in ENTRIES) and all(len(line) <= 130 for line in out.splitlines())
    main(["zoo", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["norton-78/faster_rcnn"]["published_macs"] == 93_390_000_000
    main(["zoo", "norton-78/faster_rcnn"])
    assert "93,034,741,216, published 93.39 G" in capsys.readouterr().out
    main(["zoo", "--download", "test/resnet50"])
    out = capsys.readouterr().out
    file = tmp_path / "zoo" / "own.pth"
    assert out == f"{file}\nSHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}\n"
    main(["zoo", "--verify", str(file)])
    assert "test/resnet50, SHA-256" in capsys.readouterr().out
    (tmp_path / "another").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    with pytest.raises(InputError, match=f"got 'another' with SHA-256 {digest}; see norton-det zoo NAME"):
        main(["zoo", "--verify", str(tmp_path / "another")])
    (tmp_path / "resnet50-0676ba6l.pth").write_bytes(b"x")
    with pytest.raises(InputError, match=r"did you mean resnet50-0676ba61\.pth\?"):
        main(["zoo", "--verify", str(tmp_path / "resnet50-0676ba6l.pth")])
    file.write_bytes(b"x")
    with pytest.raises(InputError, match="expected SHA-256"):
        main(["zoo", "--verify", str(file)])


def test_info(capsys):
    main(["info", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (
        found["versions"]["torch"] == torch.__version__ and found["configs"] and found["devices"][0].startswith("CPU: ")
    )
    assert found["zoo"] == [entry.name for entry in ENTRIES]
    main(["info"])
    out = capsys.readouterr().out
    assert all(name in out for name in found["optional"]) and "zoo (norton-det zoo)" in out


def test_info_without_optional_packages():
    """They are hidden from an interpreter; each is told with what installs it."""
    code = (
        "import sys, importlib.util as util\nfrom norton_det.commands.info import DISTRIBUTIONS\n"
        "for name in DISTRIBUTIONS: sys.modules[name] = None\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name in DISTRIBUTIONS else real(name, *more)\n"
        "sys.argv = ['norton-det', 'info']\nfrom norton_det.commands.main import entry\nentry()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    missing = re.findall(r"^  (\w+) +missing: (.+)$", done.stdout, re.M)
    from norton_det.commands.info import DISTRIBUTIONS

    assert [name for name, _ in missing] == list(DISTRIBUTIONS) and "OpenVINO" not in done.stdout
    assert all("pip install" in how for _, how in missing)


def test_what_came_is_logged(served, caplog):
    served("none")
    with caplog.at_level(logging.INFO, "norton_det"):
        zoo.weights_path("test/resnet50", progress=False)
    assert re.search(r"SHA-256 [0-9a-f]{64}, kept in own\.pth\.sha256", caplog.text)

"""Checkpoints: identical outputs, self-describing, and every kind of damage told in one line."""

import json
import os
import resource
import signal
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from norton_det.checkpoint.load import load_checkpoint
from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.save import save_checkpoint, save_tensors
from norton_det.checkpoint.tensor_file import METADATA_KEY, read_safetensors, write_tensors
from norton_det.models.description import NetworkInfo
from norton_det.models.preprocessing import MSRA, TORCHVISION
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

SPEC = CompressionSpec.parse(1, "[0.75]+[0.9]*3+[0.85]*16", name="tiny")


def build(spec: CompressionSpec = SPEC, classes: int = 3, stride_in_1x1: bool = False) -> NortonResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NortonResNet(spec, classes, stride_in_1x1).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model.safetensors", build())


def rewrite_metadata(path: Path, text: str) -> None:
    """Another description, with the digest that goes with it."""
    try:
        write_tensors(path, open_weights(path).state, dict(json.loads(text)))
    except (ValueError, TypeError, RecursionError):
        save_file(open_weights(path).state, str(path), metadata={METADATA_KEY: text})


@pytest.mark.parametrize("rank", [None, 1, (1,) * 8 + (2,) * 8])
@pytest.mark.parametrize(("classes", "stride_in_1x1"), [(3, False), (0, True)])
def test_round_trip_gives_identical_outputs(tmp_path, rank, classes, stride_in_1x1, generator):
    model = build(CompressionSpec(SPEC.ratios, rank, name="tiny"), classes, stride_in_1x1)
    model.preprocessing = MSRA if stride_in_1x1 else TORCHVISION
    loaded = load_checkpoint(save_checkpoint(tmp_path / "model.safetensors", model))
    x = torch.randn(2, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))
    assert loaded.spec == model.spec and loaded.spec.name == "tiny"
    assert loaded.preprocessing == model.preprocessing
    assert (loaded.num_classes, loaded.stride_in_1x1, loaded.training) == (classes, stride_in_1x1, False)
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())


def test_file_describes_itself(saved):
    info = open_weights(saved).described
    assert info == NetworkInfo(SPEC, TORCHVISION, 3, False)
    assert NetworkInfo.from_json(info.to_json()) == info
    with safe_open(str(saved), framework="pt") as content:
        fields = json.loads(content.metadata()[METADATA_KEY])
    assert set(fields) == {"version", "spec", "preprocessing", "num_classes", "stride_in_1x1", "sha256"}


def test_equal_content_gives_equal_bytes(tmp_path):
    files = [save_checkpoint(tmp_path / f"{number}.safetensors", build()) for number in range(4)]
    assert len({file.read_bytes() for file in files}) == 1


def test_one_changed_bit_is_noticed(saved):
    """safetensors and torch load it without a word."""
    data, state = saved.read_bytes(), open_weights(saved).state
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for place in range(start, len(data), len(data) // 40):
        saved.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert any(not torch.equal(state[name], tensor) for name, tensor in load_file(saved).items())
        with pytest.raises(InputError, match=r"model\.safetensors: sha256: expected .* another; get the file again"):
            load_checkpoint(saved)


def test_a_changed_description_is_noticed(saved):
    text = saved.read_bytes()
    for old, new in (
        (b"RGB", b"BGR"),
        (b'num_classes\\": 3', b'num_classes\\": 4'),
        (b"tiny", b"tina"),
        (b'norton_det"', b'norton_dot"'),
        (b'version\\": 3', b'version\\": 2'),
    ):
        assert text.count(old)
        saved.write_bytes(text.replace(old, new, 1))
        with pytest.raises(InputError, match=r"model\.safetensors: "):
            load_checkpoint(saved)


def test_files_before_the_digest_are_read(saved):
    text = damaged(version=2)
    save_file(open_weights(saved).state, str(saved), metadata={METADATA_KEY: text})
    assert torch.equal(load_checkpoint(saved).fc.weight, build().fc.weight)
    save_file(open_weights(saved).state, str(saved), metadata={METADATA_KEY: damaged()})
    with pytest.raises(InputError, match="expected the field sha256, found none"):
        load_checkpoint(saved)


def test_half_precision_files_load_as_float32(tmp_path):
    loaded = load_checkpoint(save_checkpoint(tmp_path / "model.safetensors", build().half()))
    assert loaded.conv1.weight.dtype == torch.float32
    assert torch.equal(loaded.conv1.weight, build().conv1.weight.half().float())


def test_loading_leaves_the_random_state(saved):
    state = torch.get_rng_state()
    load_checkpoint(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_saving_with_a_spec(tmp_path):
    model, path = build(), tmp_path / "model.safetensors"
    save_checkpoint(path, model, SPEC.named("other name"))
    assert open_weights(path).described.spec.name == "other name"
    with pytest.raises(InputError, match=r"spec: expected that of the model, tiny .* pass model.spec"):
        save_checkpoint(path, model, CompressionSpec.preset("norton-78"))
    assert open_weights(path).described.spec.name == "other name"


def test_tensors_that_share_memory_are_written(tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    save_tensors(tmp_path / "x.safetensors", {"a": weight, "b": weight.T}, NetworkInfo(SPEC))
    read = open_weights(tmp_path / "x.safetensors").state
    assert torch.equal(read["a"], weight) and torch.equal(read["b"], weight.T)


def test_weights_of_others_have_no_info(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.ones(2)}, str(path), metadata={"format": "pt"})
    assert open_weights(path).described is None
    with pytest.raises(InputError, match=r"expected a norton checkpoint, got other weights; run norton-det compress"):
        load_checkpoint(path)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.999])
def test_truncated_files_are_refused(saved, kept):
    data = saved.read_bytes()
    saved.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(InputError, match=r"model\.safetensors: expected (weights|a safetensors file)") as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"hello world, this is text", b"\x80\x04K\x01.", b"PK\x03\x04" + b"\0" * 100, struct.pack("<Q", 2**62) + b"{}"],
    ids=["text", "pickle", "zip", "endless-header"],
)
@pytest.mark.parametrize("read", [load_checkpoint, open_weights, read_safetensors])
def test_other_files_are_refused(tmp_path, content, read):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"file\.safetensors: expected ") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [load_checkpoint, open_weights, read_safetensors])
def test_missing_files_and_folders_are_refused(tmp_path, read):
    with pytest.raises(InputError, match="found no such file"):
        read(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="got a folder"):
        read(tmp_path)


def damaged(**changes: object) -> str:
    fields = json.loads(NetworkInfo(SPEC, num_classes=3).to_json())
    fields.update(changes)
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "metadata: expected JSON"),
        ("[" * 100_000, "metadata: expected JSON"),
        ("9" * 5000, "metadata: expected JSON"),
        ("[]", "metadata: version: expected a number"),
        ("[1]", "metadata: version: expected a number"),
        (damaged(version=True), "metadata: version: expected a number"),
        (damaged(version=4), "version: expected 1 to 3, got 4; update norton_det"),
        (damaged(extra=0), "metadata: unknown field 'extra'; update norton_det"),
        (damaged(spec=None), "spec: expected a JSON object, got None"),
        (damaged(spec={"ratios": [0.0]}), "ratios: expected 20"),
        (damaged(spec=SPEC.to_dict() | {"rank": 1e999}), "rank: expected a whole number"),
        (damaged(preprocessing=[]), "preprocessing: expected the fields color, mean, std"),
        (damaged(preprocessing=MSRA.to_dict() | {"color": "RGBA"}), "color: expected RGB or BGR, got 'RGBA'"),
        (damaged(preprocessing=MSRA.to_dict() | {"std": [1, 0, 1]}), "std: expected positive numbers"),
        (damaged(preprocessing=MSRA.to_dict() | {"mean": [1, 2]}), "mean: expected 3 numbers"),
        (damaged(preprocessing=MSRA.to_dict() | {"std": [1, 1, float("nan")]}), "std: expected 3 numbers"),
        (damaged(num_classes=-1), "num_classes: expected 0 or more, got -1"),
        (damaged(num_classes="3"), "num_classes: expected 0 or more, got '3'"),
        (damaged(stride_in_1x1=1), "stride_in_1x1: expected true or false, got 1"),
    ],
)
def test_damaged_metadata_is_refused(saved, text, message):
    rewrite_metadata(saved, text)
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(saved)
    assert str(caught.value).startswith(str(saved)) and "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_the_spec_are_refused(saved):
    rewrite_metadata(saved, damaged(spec=CompressionSpec.parse(2, list(SPEC.ratios)).to_dict()))
    with pytest.raises(
        InputError, match=r"layer1.0.conv2.pointwise.weight: expected shape \(18, 9, 1, 1\), got \(9, 9, "
    ):
        load_checkpoint(saved)
    rewrite_metadata(saved, damaged(spec=CompressionSpec(SPEC.ratios, None).to_dict()))
    with pytest.raises(InputError, match=r"16 missing \(first: layer1.0.conv2.weight\), 48 unexpected \(first: layer1"):
        load_checkpoint(saved)


def test_a_small_file_cannot_ask_for_much_memory(saved):
    """A claim of a million classes (8 GB) is compared with the tensors before it gets memory."""
    rewrite_metadata(saved, damaged(num_classes=1_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"fc.weight: expected shape \(1000000, 2048\), got \(3, 2048\)"):
        load_checkpoint(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_an_interrupted_write_leaves_nothing(tmp_path):
    """The file size limit of the system ends the write halfway, as a full disk would."""
    model, folder = build(), tmp_path / "out"
    folder.mkdir()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(InputError, match="could not be written") as caught:
            save_checkpoint(folder / "model.safetensors", model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert os.listdir(folder) == []


def test_a_deploy_form_is_refused(tmp_path):
    """It could not be read back."""
    from norton_det.models.fuse import fuse

    model = NortonResNet(CompressionSpec.preset("norton-78"), 2).eval()
    with pytest.raises(InputError, match="got a deploy form; save it before fuse"):
        save_checkpoint(tmp_path / "fused.safetensors", fuse(model))
    assert not list(tmp_path.iterdir())

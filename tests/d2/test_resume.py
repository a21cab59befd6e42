"""Which checkpoint a run goes on from, and which weights a detector may start from."""

import logging
import os

import pytest
import torch
from torch import nn

from norton_det.d2 import NortonCheckpointer
from norton_det.d2.build import build_detector
from norton_det.d2.files import newest_checkpoint
from norton_det.d2.initial_weights import resume_weights
from norton_det.utils.errors import InputError


@pytest.fixture
def saver(tmp_path):
    return NortonCheckpointer(nn.Linear(2, 2), str(tmp_path))


def save(saver: NortonCheckpointer, *iterations: int, final: bool = False) -> None:
    """Checkpoints, each a second later than the one before."""
    for iteration in iterations:
        name = "model_final" if final else f"model_{iteration:07d}"
        saver.save(name, iteration=iteration)
        file = f"{saver.save_dir}/{name}.pth"
        save.clock += 1
        os.utime(file, (save.clock, save.clock))


save.clock = 1_700_000_000


def test_the_newest_is_found(saver, tmp_path, caplog):
    assert newest_checkpoint(tmp_path) == "" and not saver.has_checkpoint()
    save(saver, 9, 19)
    save(saver, 29, final=True)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "model_final.pth")
    assert saver.resume_or_load("", resume=True)["iteration"] == 29
    (tmp_path / "model_ema.pth").write_bytes((tmp_path / "model_final.pth").read_bytes()[:50])
    assert newest_checkpoint(tmp_path) == str(tmp_path / "model_final.pth")


def test_damaged_ones_are_passed_over(saver, tmp_path, caplog):
    save(saver, 9, 19, 29)
    last = tmp_path / "model_0000029.pth"
    last.write_bytes(last.read_bytes()[:300])
    with caplog.at_level(logging.WARNING, "norton_det"):
        assert newest_checkpoint(tmp_path) == str(tmp_path / "model_0000019.pth")
    assert "Passed over: " in caplog.text and "model_0000029.pth" in caplog.text
    assert "last_checkpoint names 'model_0000029.pth'; the newest whole checkpoint is" in caplog.text


@pytest.mark.parametrize("tag", ["", "\0\0\0", "model_0000099.pth", None])
def test_a_tag_that_is_stale_or_missing(saver, tmp_path, tag):
    save(saver, 9, 19)
    if tag is None:
        (tmp_path / "last_checkpoint").unlink()
    else:
        (tmp_path / "last_checkpoint").write_text(tag)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "model_0000019.pth")


def test_a_kill_between_a_checkpoint_and_its_tag(saver, tmp_path):
    save(saver, 9, 19)
    saver.tag_last_checkpoint("model_0000009.pth")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "model_0000019.pth")


def test_a_longer_run_of_before_is_not_gone_on_with(saver, tmp_path):
    """A run that began anew in a folder where an older one had come further."""
    save(saver, 89_999, 9)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "model_0000009.pth")


def test_a_folder_that_was_copied(saver, tmp_path):
    """Times are those of the copy then."""
    save(saver, 9, 19, 29)
    for place, name in enumerate(("model_0000029.pth", "model_0000009.pth", "model_0000019.pth")):
        os.utime(tmp_path / name, (2e9 + place, 2e9 + place))
    assert newest_checkpoint(tmp_path) == str(tmp_path / "model_0000029.pth")


def test_nothing_whole_is_left(saver, tmp_path, config):
    save(saver, 9)
    (tmp_path / "model_0000009.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"expected a whole checkpoint to resume, got 1 that are not \(last: model_0"):
        resume_weights(config(OUTPUT_DIR=tmp_path))


def test_weights_that_are_not_finite_are_not_saved(saver, tmp_path):
    save(saver, 9)
    with torch.no_grad():
        saver.model.weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="weights weight are not finite"):
        saver.save("model_0000019", iteration=19)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000009.pth"]


def test_weights_of_a_detector_have_to_fit(config, tmp_path):
    """Detectron2 goes on with random tensors for what is missing."""
    detector = build_detector(config())
    state = {name: tensor + 1 for name, tensor in detector.state_dict().items()}
    fc = "roi_heads.box_head.fc1.weight"

    def load(change, **options):
        changed = dict(state)
        change(changed)
        torch.save({"model": changed}, tmp_path / "w.pth")
        NortonCheckpointer(detector, **options).load(str(tmp_path / "w.pth"))

    load(lambda _: None)
    cases = (
        (
            lambda found: found.pop(fc),
            rf"w\.pth: 1 tensors of the detector are missing \(first: {fc}\); .*--partial",
        ),
        (
            lambda found: found.update(x=found[fc]),
            r"1 tensors are not of this detector \(first: x\); .*--partial",
        ),
        (lambda found: found.update({f"{fc}x": found.pop(fc)}), r"are missing \(first: .*--partial"),
    )
    for change, told in cases:
        with pytest.raises(InputError, match=told):
            load(change)
        load(change, partial=True)
    anchors = "proposal_generator.anchor_generator.cell_anchors.9"
    load(lambda found: found.update({anchors: torch.zeros(3, 4), "pixel_mean": torch.zeros(3, 1, 1)}))
    with pytest.raises(InputError, match=r"tensors of the backbone are missing"):
        load(lambda found: found.pop("backbone.bottom_up.conv1.weight"), partial=True)

"""Digests of content, and torch files that carry one."""

import hashlib
import logging
import zipfile
import zlib
from collections import OrderedDict

import pytest
import torch

from norton_det.checkpoint.digest import check_beside, content_digest
from norton_det.checkpoint.torch_file import read_torch, save_torch
from norton_det.utils.errors import InputError


def content() -> dict:
    torch.manual_seed(0)
    return {"model": {"a": torch.randn(50, 40), "b": torch.arange(3)}, "iteration": 7, "lr": [0.1, None, True, "x"]}


def test_digest_is_of_content_alone():
    one = content()
    turned = {"lr": tuple(one["lr"]), "iteration": 7, "model": OrderedDict(reversed(one["model"].items()))}
    turned["model"]["a"] = one["model"]["a"].t().contiguous().t()  # other strides
    assert content_digest(one) == content_digest(turned)
    assert len(content_digest(one)) == 64


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["model"]["a"].view(torch.int32).view(-1).__setitem__(7, 1),
        lambda found: found["model"].update(b=torch.arange(3).int()),
        lambda found: found["model"].update(b=torch.arange(3).view(3, 1)),
        lambda found: found["model"].update(c=found["model"].pop("b")),
        lambda found: found.update(iteration=8),
        lambda found: found.update(iteration="7"),
        lambda found: found.update(iteration=7.0),
        lambda found: found["lr"].__setitem__(2, 1),
        lambda found: found["lr"].append([]),
    ],
)
def test_every_change_changes_it(change):
    found = content()
    change(found)
    assert content_digest(found) != content_digest(content())


def test_what_cannot_be_loaded_is_not_saved(tmp_path):
    for value, told in (({1, 2}, "got set"), (torch.zeros(2).to_sparse(), "dense tensor"), (object(), "got object")):
        with pytest.raises(InputError, match=rf"content: trainer: hook: expected .*{told}"):
            save_torch(tmp_path / "x.pth", {"trainer": {"hook": value}})
    deep: dict = {}
    for _ in range(100):
        deep = {"x": deep}
    with pytest.raises(InputError, match="at most 32 dicts"):
        content_digest(deep)
    assert not list(tmp_path.iterdir())


def test_a_torch_file_comes_back(tmp_path):
    file = save_torch(tmp_path / "w.pth", content())
    assert content_digest(read_torch(file)) == content_digest(content())
    plain = torch.load(file, weights_only=True)  # others read it, too
    assert torch.equal(plain["model"]["a"], content()["model"]["a"])


def test_a_changed_bit_of_a_torch_file_is_noticed(tmp_path):
    """torch does not look at the checksums of the archive."""
    file = tmp_path / "w.pth"
    torch.save(content(), file)
    data, tensor = bytearray(file.read_bytes()), content()["model"]["a"]
    data[data.index(tensor.numpy().tobytes()) + 50] ^= 4
    file.write_bytes(data)
    assert not torch.equal(torch.load(file, weights_only=True)["model"]["a"], tensor)
    with pytest.raises(InputError, match=r"w\.pth: 'data/0': expected its checksum, its bytes have another; get the"):
        read_torch(file)


def test_a_changed_number_with_the_checksum_that_goes_with_it_is_noticed(tmp_path):
    """Where the archive is sound the digest tells."""
    file = save_torch(tmp_path / "w.pth", content())
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    name = next(name for name in members if name.endswith("data/0"))
    members[name] = bytes([members[name][0] ^ 1]) + members[name][1:]
    with zipfile.ZipFile(file, "w") as new:
        for member, data in members.items():
            new.writestr(member, data)
            assert new.getinfo(member).CRC == zlib.crc32(data)
    with pytest.raises(InputError, match=r"w\.pth: sha256: expected '\w{12}'..., its content has another; get"):
        read_torch(file)


def test_digest_beside_a_file(tmp_path, caplog):
    file = tmp_path / "R-50.pkl"
    file.write_bytes(b"weights")
    with caplog.at_level(logging.INFO, "norton_det"):
        check_beside(file, file.read_bytes())
    assert "carries no checksum; damage to its numbers cannot be noticed" in caplog.text
    beside = tmp_path / "R-50.pkl.sha256"
    beside.write_text(f"{hashlib.sha256(b'weights').hexdigest().upper()}  R-50.pkl\n")
    check_beside(file, file.read_bytes())
    file.write_bytes(b"weightz")
    with pytest.raises(InputError, match=r"R-50\.pkl: sha256: expected .* as R-50\.pkl\.sha256 says, got .*; get"):
        check_beside(file, file.read_bytes())
    beside.write_text("hello")
    with pytest.raises(InputError, match="expected what sha256sum writes, got 'hello'"):
        check_beside(file, file.read_bytes())


def test_small_files_that_claim_much(tmp_path):
    """Memory is not taken for what a file does not hold."""
    hollow = tmp_path / "hollow.pth"
    torch.save({"w": torch.zeros(1).expand(10**12), "norton_det.sha256": "0"}, hollow)
    with pytest.raises(InputError, match="w: expected 1000000000000 stored values, got fewer"):
        read_torch(hollow)
    row = dict.fromkeys(range(300), 0)
    cube = {number: dict.fromkeys(range(300), row) for number in range(300)}
    table = cube[0]
    torch.save({str(number): table for number in range(300)}, tmp_path / "cube.pth")
    found = read_torch(tmp_path / "cube.pth")
    assert found["0"] is found["299"]  # shared, as in the file
    doubling: list = []
    for _ in range(30):
        doubling = [doubling, doubling]
    with pytest.raises(InputError, match="expected at most 1000000 values, got more"):
        content_digest({"x": doubling})


def test_devices_stay_devices(tmp_path):
    from norton_det.utils.files import atomic_path

    with atomic_path("/dev/null") as path:
        path.write_text("x")
    assert not path.is_file()
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    with atomic_path(link) as path:
        path.write_text("new")
    assert link.is_symlink() and real.read_text() == "new" and real.stat().st_mode & 0o777 == 0o600

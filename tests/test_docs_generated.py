"""The pages that tools/make_reference.py writes are those that are there, and say what the code does."""

import shutil

import pytest

detectron2_config = pytest.importorskip("detectron2.config")

from norton_det.d2 import add_norton_config  # noqa: E402


@pytest.fixture
def config_page(monkeypatch, repository):
    monkeypatch.syspath_prepend(str(repository / "tools"))
    from reference import config_page

    return config_page


def test_pages_are_current_and_old_ones_are_told(call, repository, tmp_path):
    assert call("tools/make_reference.py", "--check")[0] == 0
    for name in ("tools.md", "configuration.md"):
        shutil.copy(repository / "docs" / name, tmp_path / name)
    page = tmp_path / "tools.md"
    page.write_text(page.read_text().replace("--calibrate", "--calibration"))
    status, out, err = call("tools/make_reference.py", "--check", "--output", tmp_path)
    assert (status, out) == (1, "") and err.startswith(f"{page}: old;") and err.count("\n") == 1
    assert call("tools/make_reference.py", "--output", tmp_path)[:2] == (0, f"{page}\n")
    assert page.read_text() == (repository / "docs/tools.md").read_text()


def test_nothing_of_this_machine(repository):
    text = "".join((repository / "docs" / name).read_text() for name in ("tools.md", "configuration.md"))
    assert str(repository) not in text and "tcp://127.0.0.1:4" not in text


def test_every_key_and_its_default(config_page, repository):
    def flat(node, prefix=""):
        for name, value in node.items():
            if isinstance(value, detectron2_config.CfgNode):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", repr(value)

    own, theirs = detectron2_config.get_cfg(), dict(flat(detectron2_config.get_cfg()))
    add_norton_config(own)
    added = {name: value for name, value in flat(own) if name not in theirs}
    keys = config_page.read_keys((repository / config_page.SOURCE).read_text())
    assert {key.name: key.default for key in keys if key.default is not None} == added and len(added) > 10
    assert all(len(key.text.split()) > 4 for key in keys)


def test_a_key_without_a_comment_is_refused(config_page):
    from norton_det.utils.errors import InputError

    source = "def add_norton_config(cfg):\n    # What A does.\n    cfg.A = 1\n    cfg.B = 2\n"
    with pytest.raises(InputError, match=r"B: expected a comment above it"):
        config_page.read_keys(source)


def test_pictures_of_the_method(call, repository, tmp_path):
    names = ("decomposition", "block", "pruning", "coupled", "calibration")
    files = [tmp_path / f"method_{name}.png" for name in names]
    status, out, _ = call("tools/draw_method.py", "--output", tmp_path)
    assert status == 0 and out.split() == list(map(str, files))
    page = (repository / "docs/method.md").read_text()
    for file in files:
        there = repository / "docs/images" / file.name
        assert f"images/{file.name}" in page and there.stat().st_size < 300_000
        assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 20_000
    first = files[1].read_bytes()
    assert call("tools/draw_method.py", "--output", tmp_path, "--only", "block")[0] == 0
    assert files[1].read_bytes() == first  # the same bytes each time


def test_the_macs_in_the_picture(monkeypatch, repository):
    monkeypatch.syspath_prepend(str(repository / "tools"))
    import draw_method

    dense, trained, deployed = ([int(cell.replace(",", "")) for cell in row[1:]] for row in draw_method.macs())
    size = draw_method.WIDTH
    assert dense == [size * size * 9] * 3
    assert trained == [size * rank * (size + 3 + 3) for rank in (1, 2, 3)]
    assert deployed == [size * rank * (size + 9) for rank in (1, 2, 3)]

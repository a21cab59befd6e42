"""Downloads that are resumed and checked; COCO 2017 checked and fetched from a server on the loopback."""

import hashlib
import http.server
import json
import runpy
import sys
import threading
import zipfile
from dataclasses import replace

import pytest

from norton_det.data import coco2017
from norton_det.data.coco2017 import archives_for, check_coco
from norton_det.utils.download import Archive, download, unpack
from norton_det.utils.errors import InputError


class Handler(http.server.BaseHTTPRequestHandler):
    """Files of a folder, with ranges; ``limit``: bytes after which it hangs up."""

    def do_GET(self):
        own = self.server
        data = (own.folder / self.path.lstrip("/")).read_bytes()
        wanted = self.headers.get("Range")
        own.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and own.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : None if own.limit is None else start + own.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A server of files in its ``folder``; ``url``: its address."""
    own = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    own.folder, own.limit, own.ranges, own.asked = tmp_path / "served", None, True, []
    own.folder.mkdir()
    own.url = f"http://127.0.0.1:{own.server_port}"
    threading.Thread(target=own.serve_forever, daemon=True).start()
    yield own
    own.shutdown()
    own.server_close()


def zipped(server, name: str, files: dict[str, bytes]) -> Archive:
    """An archive that the server has."""
    with zipfile.ZipFile(server.folder / name, "w") as archive:
        for inside, data in files.items():
            archive.writestr(inside, data)
    data = (server.folder / name).read_bytes()
    return Archive(f"{server.url}/{name}", len(data), hashlib.md5(data).hexdigest())


def test_a_download_goes_on_where_it_stopped(server, tmp_path):
    archive = zipped(server, "a.zip", {"x/1.jpg": bytes(range(256)) * 40})
    server.limit = 4000
    with pytest.raises(InputError, match=r"a\.zip.*: expected .*; run it again to go on"):
        download(archive, tmp_path, progress=False)
    assert (tmp_path / "a.zip.part").stat().st_size == 4000
    server.limit = None
    path = download(archive, tmp_path, progress=False)
    assert server.asked == [None, "bytes=4000-"] and not (tmp_path / "a.zip.part").exists()
    assert path.read_bytes() == (server.folder / "a.zip").read_bytes()
    download(archive, tmp_path, progress=False)
    assert len(server.asked) == 2  # it is there
    unpack(path, tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "x" / "1.jpg").read_bytes() == bytes(range(256)) * 40


def test_a_server_without_ranges_starts_again(server, tmp_path):
    archive = zipped(server, "a.zip", {"1.jpg": b"1" * 5000})
    (tmp_path / "a.zip.part").write_bytes(b"?" * 100)
    server.ranges = False
    assert download(archive, tmp_path, progress=False).stat().st_size == archive.size


def test_what_is_not_the_archive_is_refused(server, tmp_path):
    archive = replace(zipped(server, "a.zip", {"1.jpg": b"1"}), md5="0" * 32)
    with pytest.raises(InputError, match=r"expected MD5 0{32}, got [0-9a-f]{32}; deleted, load it again"):
        download(archive, tmp_path, progress=False)
    assert not list(tmp_path.glob("a.zip*"))
    with pytest.raises(InputError, match=r"expected to load 0\.0 GB, got .*; run it again to go on, or put a\.zip"):
        download(replace(archive, url="http://127.0.0.1:9/a.zip"), tmp_path, progress=False)
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"a\.zip: expected an intact zip file"):
        unpack(tmp_path / "a.zip", tmp_path, progress=False)


def test_names_that_lead_out_are_refused(server, tmp_path):
    zipped(server, "a.zip", {"../evil.txt": b"1"})
    with pytest.raises(InputError, match=r"\.\./evil\.txt: expected a name within the folder"):
        unpack(server.folder / "a.zip", tmp_path / "out", progress=False)
    assert not (tmp_path / "evil.txt").exists()


def test_coco_is_checked_and_completed(server, tmp_path, repository, monkeypatch, capsys):
    """A COCO of three images, from a server of its own."""
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 4, "width": 4} for n in range(3)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    names = [f"annotations/{kind}_val2017.json" for kind in ("instances", "person_keypoints")]
    annotations = dict.fromkeys(names, json.dumps(content).encode())
    pictures = {f"val2017/{n}.jpg": bytes([n]) for n in range(3)}
    monkeypatch.setattr(coco2017, "ANNOTATIONS", zipped(server, "annotations_trainval2017.zip", annotations))
    monkeypatch.setattr(coco2017, "IMAGES", {"val": zipped(server, "val2017.zip", pictures)})
    monkeypatch.setattr(coco2017, "COUNTS", {"val": 3})

    def prepare(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["prepare_coco.py", str(tmp_path / "coco"), "--val-only", *words])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(repository / "datasets" / "prepare_coco.py"), run_name="__main__")
        return done.value.code or 0

    assert prepare("--check") == 2 and "3 parts are not whole; run it without --check" in capsys.readouterr().err
    assert prepare("--clean") == 0 and not (tmp_path / "coco" / "archives").exists()
    assert not any(part.problem for part in check_coco(tmp_path / "coco", ("val",)))
    (tmp_path / "coco" / "val2017" / "1.jpg").unlink()
    assert prepare("--check") == 2
    out = capsys.readouterr().out
    assert "1 of 3 images are missing, first 1.jpg" in out
    assert [archive.name for archive in archives_for(check_coco(tmp_path / "coco", ("val",)))] == ["val2017.zip"]
    assert prepare() == 0 and prepare("--check") == 0
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text('{"images": [')
    assert prepare("--check") == 2 and "instances_val2017.json" in capsys.readouterr().out
    assert prepare() == 0  # what --check finds is mended by the command that it names

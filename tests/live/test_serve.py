"""The server of the page, over its WebSocket and in a real browser with a camera that plays a film."""

import http.client
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import cv2
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from norton_det.live.answer import to_answer
from norton_det.live.server import LARGEST_FRAME, LOCAL, VISITORS, Model, decode, is_host, make_app
from norton_det.utils.errors import InputError
from tests import REPOSITORY

from .films import picture, video
from .test_frames import detections


class Serving:
    """tools/serve.py in a process of its own; the same port after ``start`` again."""

    def __init__(self, *words: object) -> None:
        self.words, self.port = words, 0
        self.start()

    def start(self) -> None:
        words = [sys.executable, "tools/serve.py", "--port", str(self.port), *map(str, self.words)]
        self.process = subprocess.Popen(
            words,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        line = self.process.stdout.readline()
        assert line.startswith("http://localhost:"), (line, self.process.stderr.read())
        self.address = line.split()[0]
        self.port = int(self.address.rpartition(":")[2])

    def stop(self, how: int = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(how)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err

    def visit(self, **options: Any) -> Any:
        return connect(f"ws://localhost:{self.port}/frames", max_size=2**24, **options)


@pytest.fixture(scope="module")
def serving(exported) -> Iterator[Serving]:
    made = Serving("--weights", f"dense={exported}", "--weights", exported, "--threads", 1)
    yield made
    if made.process.poll() is None:
        made.stop()


def frame(number: int, image=None) -> bytes:
    encoded = cv2.imencode(".jpg", picture(3) if image is None else image)[1]
    return number.to_bytes(4, "big") + encoded.tobytes()


def ask(visitor: Any, message: str | bytes) -> dict[str, Any]:
    visitor.send(message)
    return json.loads(visitor.recv(timeout=60))


def test_frames_are_answered(serving):
    with serving.visit() as visitor:
        visitor.send(json.dumps({"models": ["norton-78"], "threshold": 0.0}))
        answer = ask(visitor, frame(7))
        assert (answer["frame"], answer["model"]) == (7, "norton-78") and answer["ms"] > 0
        assert len(answer["objects"]) > 0
        for each in answer["objects"]:
            left, top, right, bottom = each["box"]
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1 and each["name"] in ("cat", "dog")
        visitor.send(json.dumps({"models": ["dense", "norton-78"], "threshold": 1.0}))
        first, second = ask(visitor, frame(8)), json.loads(visitor.recv(timeout=60))
        assert (first["model"], second["model"]) == ("dense", "norton-78")
        assert first["objects"] == second["objects"] == [] and first["frame"] == second["frame"] == 8


@pytest.mark.parametrize(
    ("message", "pattern"),
    [
        (b"\0\0\0\1" + b"no picture" * 99, "expected a picture .*, got bytes that do not decode"),
        (frame(1)[:200], "expected a picture"),
        (b"\0", "expected a number of 4 bytes and a picture"),
        ("no json", "settings: expected"),
        ('{"models": [], "threshold": 0.5}', "settings: expected"),
        ('{"models": ["dense"], "threshold": NaN}', "settings: expected"),
        ('{"models": ["other"], "threshold": 0.5}', "expected models of dense, norton-78, got 'other'"),
    ],
)
def test_what_is_no_frame_is_told_and_survived(serving, message, pattern):
    with serving.visit() as visitor:
        answer = ask(visitor, message)
        assert re.search(pattern, answer["error"]) and "\n" not in answer["error"]
        assert ask(visitor, frame(2))["frame"] == 2


def test_pictures_with_too_many_pixels_are_not_decoded():
    import numpy as np

    bomb = cv2.imencode(".png", np.zeros((8000, 8000, 3), np.uint8))[1].tobytes()
    assert len(bomb) < LARGEST_FRAME
    with pytest.raises(InputError, match="expected at most 2000000 pixels, got 8000x8000"):
        decode(bomb)


def test_too_large_a_message_ends_that_visitor_alone(serving):
    with serving.visit() as other, serving.visit() as visitor:
        visitor.send(bytes(LARGEST_FRAME + 1))
        with pytest.raises(ConnectionClosed) as ended:
            visitor.recv(timeout=60)
        assert ended.value.rcvd.code == 1009
        assert ask(other, frame(1))["frame"] == 1


def test_foreign_pages_and_names_are_refused(serving):
    for options in (
        {"origin": "http://evil.example"},
        {"origin": f"http://localhost:{serving.port + 1}"},
        {"origin": "null"},
    ):
        with pytest.raises(InvalidStatus) as refused:
            serving.visit(**options)
        assert refused.value.response.status_code == 403
    with serving.visit(origin=serving.address) as visitor:
        assert ask(visitor, frame(1))["frame"] == 1
    line = http.client.HTTPConnection("127.0.0.1", serving.port)
    line.request("GET", "/models", headers={"Host": "evil.example"})
    assert line.getresponse().status == 421


def test_two_visitors_are_served_in_turns_and_only_so_many_at_once(serving):
    with serving.visit() as one, serving.visit() as two:
        for number in range(4):
            one.send(frame(number))
            two.send(frame(100 + number))
            assert json.loads(one.recv(timeout=60))["frame"] == number
            assert json.loads(two.recv(timeout=60))["frame"] == 100 + number
    crowd = [serving.visit() for _ in range(VISITORS)]
    with serving.visit() as late, pytest.raises(ConnectionClosed) as ended:
        late.recv(timeout=60)
    assert ended.value.rcvd.code == 1013
    for visitor in crowd:
        visitor.close()
    deadline = time.monotonic() + 20
    while True:  # those that have gone make room
        with serving.visit() as visitor:
            try:
                assert ask(visitor, frame(1))["frame"] == 1
                break
            except ConnectionClosed:
                assert time.monotonic() < deadline


def test_a_detector_that_fails_is_told_and_the_server_goes_on(serving):
    """An engine's own error (out of memory, say) is an answer, not a lost connection."""
    from types import SimpleNamespace

    import uvicorn

    asked: list[float] = []

    def predict(image, score):
        asked.append(score)
        if len(asked) == 1:
            raise RuntimeError("out of memory\nmore of it")
        return detections("boxes")

    info = SimpleNamespace(precision="f32", macs=0, params=0, classes=("cat",))
    app = make_app([Model("one", predict, info, "PyTorch")])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with connect(f"ws://localhost:{port}/frames") as visitor:
        visitor.send('{"models": ["one"], "threshold": 0.25}')
        answer = ask(visitor, frame(1))
        assert answer["frame"] == 1 and answer["error"].startswith("the detector failed (out of memory")
        assert "\n" not in answer["error"]
        assert [each["name"] for each in ask(visitor, frame(2))["objects"]] == ["cat", "class 7"]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    assert asked == [0.25, 0.25]


def test_half_a_request_is_let_go_of_and_text_that_is_no_utf8_is_one_line(monkeypatch, caplog):
    import socket
    from types import SimpleNamespace

    import uvicorn

    from norton_det.live import server as module

    monkeypatch.setattr(module, "PATIENCE", 0.3)
    info = SimpleNamespace(precision="f32", macs=0, params=0, classes=("cat",))
    app = make_app([Model("one", lambda _image, _score: detections("boxes"), info, "PyTorch")])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, http=module.make_protocol()))
    logging.getLogger("uvicorn.error").addFilter(own := module.OneLine())
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with connect(f"ws://localhost:{port}/frames") as visitor:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as half:
                half.sendall(b"GET /frames HTTP/1.1\r\nHost: loc")
                assert half.recv(1) == b""  # closed
            assert ask(visitor, frame(1))["frame"] == 1  # a visitor that has asked stays
            visitor.send(b"\xff\xfe", text=True)
            with pytest.raises(ConnectionClosed) as ended:
                visitor.recv(timeout=20)
            assert ended.value.rcvd.code == 1007
    finally:
        server.should_exit = True
        thread.join(20)
        logging.getLogger("uvicorn.error").removeFilter(own)
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "Invalid UTF-8" in record.getMessage() and not record.exc_info


@pytest.mark.parametrize(
    ("header", "hosts", "good"),
    [
        ("localhost:8000", LOCAL, True),
        ("LocalHost", LOCAL, True),
        ("[::1]:8000", LOCAL, True),
        ("evil.example:8000", (*LOCAL, "*"), False),
        ("192.168.1.7:8000", LOCAL, False),
        ("192.168.1.7:8000", (*LOCAL, "*"), True),
        ("[fe80::1]:8000", (*LOCAL, "*"), True),
        ("1.2.3.4.evil.example", (*LOCAL, "*"), False),
        ("", LOCAL, False),
    ],
)
def test_names_that_the_server_may_be_called_by(header, hosts, good):
    assert is_host(header, hosts) == good


def test_bad_input_of_the_command(call, tmp_path, exported, serving):
    for words, pattern in (
        (("--weights", tmp_path / "none.xml"), "found no such file"),
        (("--weights", exported, "--weights", exported), "expected names that differ, got norton-78 twice"),
        (("--weights", exported, "--port", serving.port), "cannot listen there"),
        (("--weights", exported, "--port", 99999), "--port: expected 0 to 65535, got 99999"),
        (("--weights", exported, "--ssl-certfile", "a.pem"), "expected both or neither"),
        (
            ("--weights", exported, "--ssl-certfile", exported, "--ssl-keyfile", exported),
            "expected a certificate (PEM) and its key",
        ),
        (("--weights", exported, "--min-size", 64), "--min-size: expected a detector in PyTorch, got none"),
    ):
        given = words if "--port" in words else (*words, "--port", 0)
        status, _, err = call("tools/serve.py", *given)
        assert status == 2 and pattern in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints"])
def test_answers_hold_what_was_found(kind):
    first, second = to_answer(detections(kind), 96, 128, ["cat"])
    assert first["box"] == pytest.approx([20 / 128, 30 / 96, 80 / 128, 70 / 96], abs=1e-4)
    assert (first["name"], second["name"], second["label"]) == ("cat", "class 7", 7)
    assert ("mask" in first, "keypoints" in first) == (kind == "masks", kind == "keypoints")
    if kind == "masks":
        (outline,) = first["mask"]
        assert min(outline[::2]) == pytest.approx(30 / 128, abs=0.01) and max(outline[1::2]) < 61 / 96
        assert second["mask"] == []
    if kind == "keypoints":
        assert len(first["keypoints"]) == 17 and first["keypoints"][0] == pytest.approx(
            [25 / 128, 50 / 96, 0.9], abs=1e-3
        )


# --- in a browser -----------------------------------------------------------------------------------------------------


CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
browser_only = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and find_spec("selenium")),
    reason="no Chromium (apt-get install chromium chromium-driver) or no selenium",
)
RED, YELLOW = (255, 64, 64), (255, 210, 63)  # of the page's classes 1 and 2


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A film for Chromium's fake camera: motion JPEG, grey but for its blue corner."""
    path = tmp_path_factory.mktemp("camera") / "film.mjpeg"
    path.write_bytes(b"".join(cv2.imencode(".jpg", picture(n % 20, 480, 640))[1].tobytes() for n in range(60)))
    return path


def open_browser(film: Path, profile: Path, allow: bool = True) -> Any:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "window-size=1200,900"]
    flags += ["disable-background-networking", "disable-component-update", "disable-sync", f"user-data-dir={profile}"]
    flags += ["use-fake-device-for-media-stream", f"use-file-for-fake-video-capture={film}"]
    flags += ["use-fake-ui-for-media-stream"] if allow else ["deny-permission-prompts"]
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.fixture
def browser(film, tmp_path) -> Iterator[Any]:
    driver = open_browser(film, tmp_path / "profile")
    yield driver
    driver.quit()


def wait(browser: Any, script: str, seconds: float = 60) -> Any:
    """Until an expression in the page is true; its value."""
    deadline = time.monotonic() + seconds
    while not (found := browser.execute_script(f"return {script}")):
        assert time.monotonic() < deadline, (script, browser.find_element("id", "error").text)
        time.sleep(0.1)
    return found


def slide(browser: Any, value: float) -> None:
    browser.execute_script(
        "const slider = document.getElementById('threshold'); slider.value = arguments[0];"
        "slider.dispatchEvent(new Event('input'))",
        value,
    )


def choose(browser: Any, name: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", "model")).select_by_visible_text(name)


def painted(model: str) -> str:
    """Script: pixels of a detector's canvas in the colours of boxes."""
    colors = json.dumps([RED, YELLOW])
    return (
        f"(() => {{ const c = document.querySelector('canvas[data-model=\"{model}\"]'); if (!c || !c.width) return 0;"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;"
        f"for (let i = 0; i < d.length; i += 4) for (const [r, g, b] of {colors})"
        " if (Math.abs(d[i] - r) + Math.abs(d[i + 1] - g) + Math.abs(d[i + 2] - b) < 12) n++; return n; })()"
    )


def objects(model: str) -> str:
    return f"Number(document.querySelector('canvas[data-model=\"{model}\"]')?.dataset.objects ?? -1)"


@browser_only
def test_the_page_with_a_camera(exported, browser, tmp_path):
    serving = Serving("--weights", f"dense={exported}", "--weights", exported, "--threads", 1)
    try:
        browser.get(serving.address)
        wait(browser, "document.getElementById('state').dataset.state === 'ready'")
        options = [each.text for each in browser.find_elements("css selector", "#model option")]
        assert options == ["dense", "norton-78", "dense + norton-78"]

        choose(browser, "norton-78")
        slide(browser, 0.05)
        browser.find_element("id", "camera").click()
        wait(browser, f"{objects('norton-78')} > 0 && {painted('norton-78')} > 100")
        assert wait(browser, "document.querySelector('canvas[data-model]').width") == 640
        assert len(browser.find_elements("css selector", "#views figure")) == 1

        slide(browser, 1.0)
        wait(browser, f"{objects('norton-78')} === 0 && {painted('norton-78')} === 0")
        slide(browser, 0.05)
        wait(browser, f"{objects('norton-78')} > 0")

        browser.find_element("id", "pause").click()
        wait(browser, "document.getElementById('pause').textContent === 'Go on'")
        slide(browser, 1.0)
        wait(browser, f"{objects('norton-78')} === 0")  # the paused frame is seen anew
        slide(browser, 0.05)
        wait(browser, f"{objects('norton-78')} > 0")
        browser.find_element("id", "pause").click()

        choose(browser, "dense + norton-78")
        wait(browser, "document.querySelectorAll('#views figure').length === 2")
        wait(browser, f"{objects('dense')} > 0 && {painted('dense')} > 100 && {painted('norton-78')} > 100")
        rows = wait(
            browser,
            "document.querySelectorAll('#speeds tr').length === 2 && document.getElementById('speeds').innerText",
        )
        assert "dense (OpenVINO f32)" in rows and "norton-78 (OpenVINO f32)" in rows
        wait(browser, "[...document.querySelectorAll('#speeds tr')].every((r) => Number(r.cells[5].textContent) > 0.5)")
        used = "document.getElementById('graph').getContext('2d').getImageData(0, 0, 1200, 120).data.some((v) => v > 0)"
        wait(browser, used)
        browser.save_screenshot(str(tmp_path / "camera.png"))

        assert serving.stop(signal.SIGKILL)[0] == -signal.SIGKILL
        wait(browser, "document.getElementById('state').dataset.state === 'gone'")
        assert "Start it again with norton-det serve" in browser.find_element("id", "error").text
        before = browser.execute_script("return document.getElementById('state').textContent")
        assert "trying again" in before
        serving.start()
        wait(browser, "document.getElementById('state').dataset.state === 'ready'")
        assert not browser.find_element("id", "error").is_displayed()
        wait(browser, f"{objects('dense')} > 0 && {painted('dense')} > 100")  # goes on by itself
        severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert all("/frames" in each or "/models" in each for each in severe), severe  # of the time without a server
    finally:
        if serving.process.poll() is None:
            serving.stop()
    folder = os.environ.get("NORTON_DET_SCREENSHOTS")
    if folder:
        shutil.copy(tmp_path / "camera.png", folder)


@browser_only
def test_the_page_with_files_and_on_a_telephone(serving, browser, tmp_path):
    browser.set_window_size(400, 800)
    browser.get(serving.address)
    wait(browser, "document.getElementById('state').dataset.state === 'ready'")
    choose(browser, "norton-78")
    slide(browser, 0.05)
    cv2.imwrite(str(tmp_path / "still.png"), picture(7, 300, 400))
    given = browser.find_element("id", "file")
    given.send_keys(str(tmp_path / "still.png"))
    wait(browser, f"{objects('norton-78')} > 0 && {painted('norton-78')} > 100")
    found = browser.execute_script(f"return {objects('norton-78')}")
    slide(browser, 0.95)
    wait(browser, f"{objects('norton-78')} < {found}")
    slide(browser, 0.05)
    wait(browser, f"{objects('norton-78')} === {found}")

    cv2.imwrite(str(tmp_path / "other.png"), picture(20, 200, 300))
    given.send_keys(str(tmp_path / "still.png"))
    given.send_keys(str(tmp_path / "other.png"))  # while the one before is looked at
    wait(browser, "document.querySelector('canvas[data-model]').width === 300")
    wait(browser, f"{objects('norton-78')} > 0 && {painted('norton-78')} > 50")

    given.send_keys(str(video(tmp_path / "film.mp4", 20, 240, 320)))
    wait(browser, "document.querySelector('canvas[data-model]').width === 320")
    wait(browser, f"{objects('norton-78')} > 0 && {painted('norton-78')} > 50")

    browser.find_element("id", "camera").click()
    wait(browser, f"document.querySelector('canvas[data-model]').width === 640 && {objects('norton-78')} > 0")
    given.send_keys(str(tmp_path / "still.png"))
    wait(browser, f"document.querySelector('canvas[data-model]').width === 400 && {objects('norton-78')} === {found}")

    (tmp_path / "text.png").write_text("no picture")
    given.send_keys(str(tmp_path / "text.png"))
    wait(browser, "document.getElementById('error').textContent.includes('text.png is no picture or video')")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


@browser_only
def test_a_camera_that_is_not_allowed(serving, film, tmp_path):
    browser = open_browser(film, tmp_path / "profile", allow=False)
    try:
        browser.get(serving.address)
        wait(browser, "document.getElementById('state').dataset.state === 'ready'")
        browser.find_element("id", "camera").click()
        wait(browser, "document.getElementById('error').textContent.includes('was not allowed')")
    finally:
        browser.quit()

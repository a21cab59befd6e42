"""Frames in and drawn frames out: pictures, videos, streams over loopback; what is damaged, lost or not there."""

import errno
import os
import re
import signal
import socket
import struct
import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from norton_det.data.images import GAP, beside
from norton_det.deploy import Detections
from norton_det.deploy.predictor import class_name
from norton_det.live import Frame, Meter, Overlay, SourceLost, check_output, open_sink, open_source
from norton_det.live.camera import Camera
from norton_det.live.capture import cameras, open_live
from norton_det.live.film import VideoFile
from norton_det.live.sink import PictureSink
from norton_det.live.video import VideoSink
from norton_det.utils.errors import InputError

cv2 = pytest.importorskip("cv2")
av = pytest.importorskip("av")
pytest.importorskip("supervision")

from tests import process  # noqa: E402

from .films import Server, number_of, picture, video  # noqa: E402

# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_every_frame_of_a_video_comes_in_order(tmp_path, ending):
    file = video(tmp_path / f"a.{ending}")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    source = open_source(str(file))
    frames = list(source)
    source.close()
    assert source.count == len(frames) == 12 and source.fps == pytest.approx(10) and not source.live
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx([number / 10 for number in range(12)])
    assert frames[5].image[10, 10, 0] > 200 > 60 > frames[5].image[10, 10, 2]  # BGR
    assert source.skipped == []


def test_pictures_of_a_folder_a_pattern_and_by_name(tmp_path):
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture(number))
    for name in ("note.txt", "moving.gif", ".hidden"):
        (tmp_path / name).write_text("no picture")
    (tmp_path / "9.png").write_bytes(b"no picture either")
    folder, pattern = open_source(str(tmp_path)), open_source([str(tmp_path / "[12].png")])
    assert [frame.name for frame in folder] == ["0.png", "1.png", "2.png", "3.png"]
    left_out, broken = folder.skipped
    assert left_out == f"{tmp_path}: left out 2 files not named as pictures (.gif, .txt)"
    assert "9.png" in broken and broken.endswith("; give another")
    assert [number_of(frame.image) for frame in pattern] == [1, 2] and pattern.count == 2
    named = open_source([str(tmp_path / "3.png"), str(tmp_path / "0.png")])
    assert [number_of(frame.image) for frame in named] == [3, 0]
    assert next(iter(named)).image[5, 5].tolist() == [255, 0, 0]  # BGR


def test_rotation_is_honoured(tmp_path):
    """A telephone's portrait video: the matrix of the track turns it by 90 degrees."""
    file = video(tmp_path / "a.mp4")
    content = bytearray(file.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version, times and numbers, then layer, volume, ...
    assert struct.unpack(">9i", content[matrix : matrix + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 96 << 16, 0, 1 << 30)
    file.write_bytes(content)
    frame = next(iter(open_source(str(file))))
    assert frame.image.shape == (128, 96, 3)
    assert frame.image[10, -10, 0] > 200 and frame.image[10, 10, 0] < 60  # top left is top right now


def test_pictures_are_turned_as_their_exif_data_say(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(picture(3)[:, :, ::-1].copy()).save(tmp_path / "a.png", exif=exif)
    frame = next(iter(open_source(str(tmp_path / "a.png"))))
    assert frame.image.shape == (128, 96, 3)
    assert frame.image[5, -5].tolist() == [255, 0, 0] and frame.image[5, 5].tolist() != [255, 0, 0]


def test_names_with_brackets_are_files(tmp_path):
    file = video(tmp_path / "clip [abc123].mp4", frames=2)
    assert len(list(open_source(str(file)))) == 2


def test_containers_that_do_not_count_frames_are_not_called_damaged(tmp_path):
    """Matroska knows how long it is: 60 frames with a pause are guessed to be more."""
    sink = VideoSink(tmp_path / "a.mkv", None)
    for number in range(20):
        sink.write(picture(number), Frame(picture(number), number, number / 30 + (3 if number > 10 else 0)))
    sink.close()
    source = open_source(str(tmp_path / "a.mkv"))
    assert source.count != 20 and len(list(source)) == 20 and source.skipped == []


def test_a_video_that_ends_early_is_told(tmp_path):
    file = video(tmp_path / "a.mp4", frames=60, height=240, width=320)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])  # the index is in front
    source = open_source(str(file))
    read = len(list(source))
    assert 0 < read < 60 and source.skipped == [f"{file}: read {read} of 60 declared frames; the rest is damaged"]


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100, "truncated"])
def test_what_is_no_video_is_one_line(tmp_path, content):
    file = tmp_path / "a.mp4"
    if content == "truncated":
        whole = video(tmp_path / "b.mp4").read_bytes()
        content = whole[: whole.index(b"mdat") + 8]  # the index, and no frame
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mp4: expected a video"):
        open_source(str(file))


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        (77, "camera 77: expected a camera, found none"),
        (-1, "camera -1: expected a camera, found none"),
        ("/dev/video77", "camera 77: expected a camera, found none"),
        ("nothing.mp4", "nothing.mp4: expected a video, picture, folder, camera number or URL, found no such file"),
        (["nothing*.jpg"], "expected a picture, folder or pattern, found no such file"),
        ("http://127.0.0.1:9/a.mp4", "expected a video stream, none could be opened"),
    ],
)
def test_what_is_not_there_is_one_line(given, pattern):
    with pytest.raises(InputError, match=pattern):
        open_source(given)


def test_cameras_are_listed():
    assert all(name[0].isdigit() for name in cameras())


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_video_over_http_is_a_file(tmp_path, server):
    video(tmp_path / "a.mp4")
    source = open_source(f"{server.url}/a.mp4")
    assert isinstance(source, VideoFile) and [number_of(frame.image) for frame in source] == list(range(12))
    source.close()


def test_a_stream_gives_the_newest_frame_and_is_opened_again(server):
    source = Camera(f"{server.url}/live", back_off=(0.05, 0.05, 0.05))
    seen = []
    for frame in source:
        seen.append((frame.index, number_of(frame.image)))
        time.sleep(0.06)  # a slow detector
        if len(seen) == 10:
            break
    source.close()
    numbers = [index for index, _ in seen]
    assert numbers == sorted(set(numbers)) and numbers[-1] > len(seen)  # in order, with frames left out
    assert source.reopened >= 1 and source.live


def test_a_stream_that_is_lost_ends_after_attempts(server):
    server.lives = 1
    source = Camera(f"{server.url}/live", back_off=(0.01, 0.02, 0.02))
    with pytest.raises(SourceLost, match="got none after 3 attempts to open it again"):
        for _ in source:
            pass
    assert server.connections == 4  # the first, and the attempts
    source.close()


class Silent:
    """A device that opens and gives nothing, or what a decoder raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.released = error, 0

    def read(self):
        if self.error:
            raise self.error
        return False, None

    def release(self) -> None:
        self.released += 1

    def get(self, _property: int) -> float:
        return 0.0


def test_a_camera_that_opens_without_a_frame_ends(monkeypatch):
    from norton_det.live import camera as module

    opened: list[Silent] = []

    def open_live(_target):
        opened.append(Silent())
        return opened[-1]

    monkeypatch.setattr(module, "open_live", open_live)
    source = Camera(0, back_off=(0.01, 0.01, 0.01))
    with pytest.raises(SourceLost, match=r"camera 0: expected frames, got none after 3 attempts .*; plug it in"):
        next(iter(source))
    source.close()
    assert len(opened) == 4 and all(each.released for each in opened)


def test_what_a_decoder_raises_is_one_line():
    broken = Silent(cv2.error("a damaged\nbuffer"))
    source = Camera(0, capture=broken)
    with pytest.raises(SourceLost, match="camera 0: expected frames, got a failure of the decoder"):
        next(iter(source))
    source.close()
    assert broken.released


def test_a_live_source_can_be_stopped_while_it_waits(server):
    source = open_source(f"{server.url}/live")
    frames = iter(source)
    next(frames)
    source.stopped = True
    assert list(frames) == []
    source.close()


def test_a_frame_that_was_cut_off_is_left_out():
    """A part of a picture would be grey below."""
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    body = cv2.imencode(".jpg", image)[1].tobytes()
    part = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n"
    head = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def give() -> None:
            line, _ = listening.accept()
            with line:
                line.recv(4096)
                line.sendall(head + 5 * part + part[: len(part) // 2])

        threading.Thread(target=give, daemon=True).start()
        capture = open_live(f"http://127.0.0.1:{listening.getsockname()[1]}/live")
        frames = []
        while (read := capture.read())[0]:
            frames.append(read[1])
        capture.release()
    assert len(frames) == 5 and all((each == frames[0]).all() for each in frames)


def test_closing_a_stream_stops_its_thread(server):
    before = threading.active_count()
    source = open_source(f"{server.url}/live")
    next(iter(source))
    source.close()
    assert not source._thread.is_alive() and threading.active_count() <= before + 1  # one of the server may end later


# --- sinks ------------------------------------------------------------------------------------------------------------


def test_live_videos_keep_the_times_that_frames_had(tmp_path):
    sink = VideoSink(tmp_path / "a.mp4", None)
    moments = [0.0, 0.5, 0.6, 0.6, 2.0]
    for number, moment in enumerate(moments):
        sink.write(picture(number), Frame(picture(number), number, moment))
    sink.close()
    with av.open(str(tmp_path / "a.mp4")) as container:
        times = [float(frame.pts * Fraction(frame.time_base)) for frame in container.decode(video=0)]
    assert times == pytest.approx([0.0, 0.5, 0.6, 0.601, 2.0], abs=2e-3)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_what_was_written_is_playable_after_a_kill(tmp_path, ending):
    """All but the last seconds, which the encoder still had."""

    def write() -> None:
        sink = VideoSink(tmp_path / f"a.{ending}", None)
        for number in range(150):
            sink.write(picture(number), Frame(picture(number), number, number / 10))
        os.kill(os.getpid(), signal.SIGKILL)

    assert process.run(write, tmp_path, 60).status == -signal.SIGKILL
    (left,) = tmp_path.glob(".a.*")
    assert re.fullmatch(rf"\.a\.\d+\.part\.{ending}", left.name)
    frames = [number_of(frame.image) for frame in open_source(str(left))]
    assert len(frames) > 100 and frames == [number % 25 for number in range(len(frames))]


def test_a_video_that_could_not_be_moved_is_kept(tmp_path, monkeypatch):
    made = VideoSink(tmp_path / "a.mp4", 10.0)
    made.write(picture(1), Frame(picture(1), 0, 0.0))
    (tmp_path / "a.mp4").mkdir()  # meanwhile
    with pytest.raises(InputError, match=r"a\.mp4: could not be moved there \(.*\); take it from .*\.whole\.mp4"):
        made.close()
    (left,) = (path for path in tmp_path.iterdir() if "whole" in path.name)
    assert len(list(open_source(str(left)))) == 1


def test_a_video_whose_parts_cannot_be_joined_is_there(tmp_path, monkeypatch):
    from norton_det.live import video as module

    def full(*_args) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = VideoSink(tmp_path / "a.mp4", 10.0)
    made.write(picture(1), Frame(picture(1), 0, 0.0))
    monkeypatch.setattr(module, "_join_parts", full)
    made.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"] and "left in parts" in made.told[0]
    assert len(list(open_source(str(tmp_path / "a.mp4")))) == 1


@pytest.mark.parametrize(
    ("number", "mend"), [(errno.ENOSPC, "free some space"), (errno.EIO, "choose another place")], ids=["full", "other"]
)
def test_what_was_written_before_a_fault_of_the_disk_is_there(tmp_path, number, mend):
    made = VideoSink(tmp_path / "a.mp4", 10.0)
    for index in range(40):
        made.write(picture(index), Frame(picture(index), index, index / 10))

    class Broken:
        def __init__(self, container) -> None:
            self.close = container.close

        def mux(self, _packet) -> None:
            raise OSError(number, os.strerror(number))

    made._container = Broken(made._container)
    reason = re.escape(os.strerror(number))
    with pytest.raises(InputError, match=rf"a\.mp4: ends early, as .* could not be written \({reason}\); {mend}"):
        made.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert 0 < len(list(open_source(str(tmp_path / "a.mp4")))) < 40


def test_inputs_are_not_written_over(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture(3))
    film = video(tmp_path / "film.mp4", frames=2)
    for given, output in ((tmp_path, tmp_path), (tmp_path / "a.png", tmp_path / "a.png"), (film, film)):
        source = open_source(str(given))
        with pytest.raises(InputError, match="expected another place than that of the input, got the same"):
            open_sink(str(output), source)
        source.close()
    source = open_source(str(film))
    assert open_sink(str(tmp_path / "b.mp4"), source)
    source.close()


def test_sides_that_are_odd_and_change(tmp_path):
    sink = VideoSink(tmp_path / "a.mp4", 10.0)
    for number, (height, width) in enumerate([(97, 129), (97, 129), (200, 100)]):
        sink.write(picture(number, height, width), Frame(picture(number), number, 0.0))
    sink.close()
    assert [frame.image.shape for frame in open_source(str(tmp_path / "a.mp4"))] == [(98, 130, 3)] * 3


def test_another_codec_is_told(tmp_path, monkeypatch):
    from norton_det.live import video as module

    monkeypatch.setattr(module, "_has_encoder", lambda _av, name: name != "libx264")
    made = VideoSink(tmp_path / "a.mp4", 10.0)
    made.write(picture(1), Frame(picture(1), 0, 0.0))
    made.close()
    assert made.told == [f"{tmp_path / 'a.mp4'}: encoded by mpeg4, as libx264 is not here"]
    assert len(list(open_source(str(tmp_path / "a.mp4")))) == 1


def test_nothing_is_left_without_frames(tmp_path):
    VideoSink(tmp_path / "a.mp4", 10.0).close()
    assert list(tmp_path.iterdir()) == []


def test_pictures_go_to_a_folder_or_a_file(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), picture(3))
    source = open_source([str(tmp_path / "one"), str(tmp_path / "two")])
    sink = open_sink(str(tmp_path / "out"), source)
    for frame in source:
        sink.write(frame.image, frame)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "a_1.jpg"]
    kinds = PictureSink(tmp_path / "kinds")
    for name in ("a.bmp", "a.webp", "b.png", "a.webp"):
        kinds.write(picture(3), Frame(picture(3), 0, 0.0, name))
    assert sorted(path.name for path in (tmp_path / "kinds").iterdir()) == ["a.jpg", "a.webp.jpg", "a_1.jpg", "b.jpg"]
    single = open_source(str(tmp_path / "one" / "a.png"))
    open_sink(str(tmp_path / "b.png"), single).write(picture(3), next(iter(single)))
    assert (cv2.imread(str(tmp_path / "b.png")) == picture(3)).all()
    with pytest.raises(InputError, match="expected a folder or a video for more than one frame"):
        open_sink(str(tmp_path / "b.png"), source)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("a.gif", "expected a folder, or a name ending in .mp4"),
        ("file/a.mp4", "is a file"),
        ("folder.mp4", "got a folder"),
        (None, "expected a display, found none"),
    ],
)
def test_outputs_that_cannot_be_are_refused_at_once(tmp_path, monkeypatch, name, pattern):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(InputError, match=pattern):
        check_output(name and str(tmp_path / name))


# --- drawing ----------------------------------------------------------------------------------------------------------


def detections(kind: str) -> Detections:
    boxes = np.array([[20, 30, 80, 70], [5, 5, 40, 90]], np.float32)
    masks = np.zeros((2, 96, 128), bool)
    masks[0, 40:60, 30:70] = True
    points = np.zeros((2, 17, 3), np.float32)
    points[:, :, 0], points[:, :, 1] = np.linspace(25, 75, 17), 50
    points[:, :, 2] = 0.9
    points[:, 5, 2] = 0.01  # not seen
    points[:, 5, :2] = 120, 90
    extra = {"masks": {"masks": masks}, "keypoints": {"keypoints": points}}.get(kind, {})
    return Detections(boxes, np.array([0.9, 0.4], np.float32), np.array([0, 7]), **extra)


@pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints"])
def test_detections_are_drawn_where_they_are(kind):
    image = np.zeros((96, 128, 3), np.uint8)
    overlay = Overlay(["cat"])
    drawn = overlay.draw(image, detections(kind))
    assert not image.any() and drawn.shape == image.shape
    assert drawn[50, 20].any() and drawn[50, 80].any()  # the sides of the first box
    assert not drawn[92:, 85:].any()  # far from all, also from a keypoint of low score
    assert drawn[45, 35].any() == (kind == "masks")  # inside
    if kind == "keypoints":
        assert drawn[50, 25].any() and drawn[50, 74].any()
    assert class_name(["cat"], 0) == "cat" and class_name(["cat"], 7) == "class 7"


def test_labels_at_the_top_edge_stay_in_the_picture():
    overlay = Overlay(["a long name"])
    image = np.zeros((600, 900, 3), np.uint8)
    for top in (0, 300):
        one = Detections(np.array([[20, top, 620, top + 270]], np.float32), np.ones(1, np.float32), np.zeros(1, int))
        drawn = overlay.draw(image, one, scores=False)
        white = np.argwhere((drawn > 200).all(2))  # letters
        assert len(white) > 20 and white[:, 0].min() > 0
        assert (white[:, 0].max() < top) == (top == 300)  # above the box, where there is room


def test_nothing_found_and_lines_above():
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))
    image = picture(3)
    drawn = Overlay().draw(image, none, ["norton-78, OpenVINO", "12.0 FPS"])
    assert drawn.shape[0] > image.shape[0] and (drawn[-96:] == image).all()
    assert (drawn[:-96].max(axis=(1, 2)) > 200).any()  # text
    assert beside([drawn, drawn]).shape == (drawn.shape[0], 2 * 128 + GAP, 3)


def test_rates_leave_the_first_frame_out():
    meter = Meter(window=2)
    assert meter.fps == 0 and meter.median_ms == 0
    for seconds in (9.0, 0.4, 0.1, 0.1):
        meter.add(seconds)
    assert meter.fps == pytest.approx(10) and meter.median_ms == pytest.approx(100)

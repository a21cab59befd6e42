"""Videos as people have them: codecs, clocks, pauses, colours and names; what comes out lasts as long."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from norton_det.live import film, open_sink, open_source
from norton_det.utils.errors import InputError

av = pytest.importorskip("av")

from .films import number_of, picture  # noqa: E402

EVEN = [number / 10 for number in range(8)]
PAUSED = [0.0, 0.1, 0.2, 3.2, 3.25, 5.0]


def encode(
    path: Path,
    codec: str,
    times: Sequence[float] = EVEN,
    *,
    form: str = "yuv420p",
    clock: Fraction = Fraction(1, 1000),
    end: float | None = None,
    **options: str,
) -> Path:
    """Numbered pictures at these times, the last one until ``end``, in a format of pixels of FFmpeg's."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.options = 96, 128, form, options
        stream.codec_context.time_base = clock
        packets = []
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(2 * number + 1), format="bgr24").reformat(format=form)
            frame.pts, frame.time_base = round(time / clock), clock
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if end is not None:
            packets[-1].duration = round((end - times[-1]) / clock)
        for packet in packets:
            container.mux(packet)
    return path


def seen(path: Path) -> tuple[list[int], list[float], float]:
    """Numbers and times of the frames of a video, and where the last one ends; encoders darken them a little."""
    source = open_source(str(path))
    frames = list(source)
    source.close()
    assert source.skipped == []
    return [number_of(each.image) // 2 for each in frames], [each.seconds for each in frames], _end(frames[-1])


def _end(frame) -> float:
    return frame.seconds + frame.duration


def copied(path: Path, output: Path) -> Path:
    """What the demo writes of a video."""
    source = open_source(str(path))
    sink = open_sink(str(output), source)
    for frame in source:
        sink.write(frame.image, frame)
    sink.close()
    source.close()
    return output


TENTHS = Fraction(1, 10)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libsvtav1", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("alpha.webm", "libvpx-vp9", {"form": "yuva420p"}),
        ("a.mp4", "libx265", {"form": "yuv420p10le"}),
        ("a.mkv", "ffv1", {"form": "gray"}),
        ("deep.mkv", "ffv1", {"form": "gray16le"}),
        ("a.mov", "prores_ks", {"form": "yuv422p10le", "clock": TENTHS}),
        ("a.mov", "qtrle", {"form": "argb", "clock": TENTHS}),
        ("a.avi", "mpeg4", {"clock": TENTHS, "bf": "2"}),
        ("a.gif", "gif", {"form": "rgb8", "clock": Fraction(1, 100)}),
        ("a.ts", "libx264", {"clock": Fraction(1, 90_000)}),
        ("a.h264", "libx264", {"clock": Fraction(1, 25), "times": [number / 25 for number in range(8)]}),
        ("a.mp4", "libx264", {"clock": TENTHS, "x264-params": "interlaced=1"}),
    ],
)
def test_every_kind_of_video_that_pyav_reads(tmp_path, name, codec, options):
    numbers, times, end = seen(encode(tmp_path / name, codec, **options))
    assert numbers == list(range(8))
    expected = options.get("times", EVEN)
    assert times == pytest.approx(expected, abs=2e-3)
    assert end == pytest.approx(expected[-1] + expected[1], abs=2e-3)


@pytest.mark.parametrize("output", ["out.mp4", "out.mkv", "out.avi"])
@pytest.mark.parametrize(
    ("name", "codec", "times"),
    [
        ("browser.webm", "libvpx", [0.0, 0.119, 0.222, 0.341, 0.46]),
        ("screen.mp4", "libx264", PAUSED),
        ("before_zero.mkv", "libx264", [time - 0.2 for time in EVEN]),
        ("late.webm", "libvpx", [2 + time for time in EVEN]),
    ],
)
def test_frames_keep_their_times(tmp_path, name, codec, times, output):
    made = copied(encode(tmp_path / name, codec, times), tmp_path / output)
    numbers, found, end = seen(made)
    assert numbers == list(range(len(times)))  # none twice, none left out
    step = 0.05 if output.endswith("avi") else 0.002  # an .avi has a picture at each step of its rate
    assert found == pytest.approx([time - times[0] for time in times], abs=step)
    assert end == pytest.approx(found[-1], abs=0.2)
    with av.open(str(made)) as container:
        assert container.duration / av.time_base == pytest.approx(times[-1] - times[0], abs=0.2)


@pytest.mark.parametrize("output", ["out.mp4", "out.mkv", "out.avi"])
def test_the_last_picture_stays_as_long_as_it_did(tmp_path, output):
    source = open_source(str(encode(tmp_path / "a.webm", "libvpx", [0.0, 0.1, 0.2], end=3.0)))
    sink = open_sink(str(tmp_path / output), source)
    for frame in source:
        sink.write(frame.image, frame)
    sink.close()
    with av.open(str(tmp_path / output)) as container:
        assert container.duration / av.time_base == pytest.approx(3.0, abs=0.05)
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_a_clock_that_is_set_back_goes_on(tmp_path):
    """Two recordings of MPEG-TS in one file, as ``cat`` joins them."""
    content = encode(tmp_path / "a.ts", "libx264", clock=Fraction(1, 90_000)).read_bytes()
    (tmp_path / "b.ts").write_bytes(2 * content)
    numbers, times, _ = seen(tmp_path / "b.ts")
    assert numbers == 2 * list(range(8)) and times == pytest.approx([number / 10 for number in range(16)])


def test_a_matroska_that_was_cut_off_is_told(tmp_path):
    file = encode(tmp_path / "a.mkv", "libx264", [number / 10 for number in range(60)], g="5")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    source = open_source(str(file))
    assert 0 < len(list(source)) < 60
    assert len(source.skipped) == 1 and "it was cut off, or shows one picture until then" in source.skipped[0]


@pytest.mark.parametrize("cover", [False, True], ids=["sound", "with a cover"])
def test_sound_is_no_video(tmp_path, cover):
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as container:
        sound = container.add_stream("aac", rate=44_100)
        if cover:
            image = container.add_stream("mjpeg", rate=1)
            image.height, image.width, image.pix_fmt = 96, 128, "yuvj420p"
            image.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(picture(3), format="bgr24").reformat(format="yuvj420p")
            frame.pts = 0
            container.mux([*image.encode(frame), *image.encode(None)])
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
        silence.rate = 44_100
        container.mux([*sound.encode(silence), *sound.encode(None)])
    with pytest.raises(InputError, match=r"a\.mp4: expected a video, got sound alone; give one with pictures"):
        open_source(str(file))


@pytest.mark.parametrize(
    "name",
    ["2024-05-01T12:30:00.mp4", "file:a.mp4", "a%03d.mp4", "-a.mp4", "a #1?.mp4", "Größe 日本.mp4", "concat:a|b.mp4"],
)
def test_any_name_is_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    encode(Path("plain.mp4"), "libx264", EVEN[:3]).rename(name)
    assert seen(copied(Path(name), Path("out_" + name)))[0] == [0, 1, 2]
    copied(Path(name), Path(name.replace("mp4", "mkv")))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out_" + name, name.replace("mp4", "mkv")])
    monkeypatch.setattr(film, "choose_reader", lambda: film.OpenCVFilm)
    assert seen(Path(name))[0] == [0, 1, 2]


def test_a_long_name(tmp_path):
    name = "ü" * 125 + ".mp4"  # 254 bytes, of 255
    assert seen(copied(encode(tmp_path / "a.mp4", "libx264", EVEN[:3]), tmp_path / name))[0] == [0, 1, 2]


def test_without_pyav_opencv_reads(tmp_path, monkeypatch):
    paused, other = encode(tmp_path / "a.mp4", "libx264", PAUSED), encode(tmp_path / "b.mp4", "libsvtav1")
    monkeypatch.setattr(film.importlib.util, "find_spec", lambda _name: None)
    numbers, times, _ = seen(paused)
    assert numbers == list(range(6)) and times == pytest.approx(PAUSED, abs=0.01)
    with pytest.raises(InputError, match=r"b\.mp4: expected a video, .*; run pip install av supervision, which reads"):
        open_source(str(other))


def test_a_folder_named_as_a_number_is_a_folder(tmp_path, monkeypatch):
    import cv2

    (tmp_path / "2024").mkdir()
    cv2.imwrite(str(tmp_path / "2024" / "a.png"), picture(3))
    monkeypatch.chdir(tmp_path)
    assert [frame.name for frame in open_source("2024")] == ["a.png"]

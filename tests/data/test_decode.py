"""Every road of a picture into a network gives the pixels of the one reader; what a file leaves open is settled."""

import argparse
import io
import itertools
import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, features

pytest.importorskip("detectron2")
pytest.importorskip("cv2")

import cv2
from detectron2.data import DatasetCatalog, MetadataCatalog

from norton_det.commands import visualize_results
from norton_det.commands.grad_cam import look
from norton_det.d2.build import load_config, to_input
from norton_det.d2.evaluation import evaluate_predictor
from norton_det.d2.initial_weights import training_pictures
from norton_det.d2.loader import build_test_loader, build_train_loader
from norton_det.data import decode as decode_module
from norton_det.data import register_coco_folder
from norton_det.data.classes import ClassFolder
from norton_det.data.decode import UnreadableImage, read_image, short_side
from norton_det.data.images import ImageSize, load_images, make_transform, read_sample
from norton_det.deploy import Detections
from norton_det.live import open_source
from norton_det.live.server import decode
from norton_det.models.preprocessing import TORCHVISION
from norton_det.tv.adapter import to_input as to_torchvision_input
from norton_det.utils.errors import InputError

HEIGHT, WIDTH = 48, 64
NAME = "decoded"
PROFILE = ImageCms.createProfile("sRGB")


def colours() -> np.ndarray:
    """(48, 64, 3), uint8: what no turn and no exchange of colours leaves as it is."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([4 * x, 5 * y, 255 - 2 * x - y], 2).astype(np.uint8)


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = orientation
    return data


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None].astype(np.uint8), 3, 2)


def written(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def deep(ending: str, values: np.ndarray, *options: int) -> bytes:
    """A file of 16 bits of samples in colour (H, W, 3 or 4)."""
    order = [2, 1, 0, 3][: values.shape[2]]
    return cv2.imencode(ending, values[:, :, order], options)[1].tobytes()


def turned(orientation: int, form: str) -> bytes:
    """``colours`` as a camera stores it, to be turned by this tag."""
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    methods = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    image = Image.fromarray(colours())
    stored = image if orientation == 1 else image.transpose(Image.Transpose(methods[back]))
    return written(stored, form, exif=exif(orientation))


def ycck() -> bytes:
    """A JPEG of Adobe's with four channels, of which three are transformed as colours are."""
    channels = [*Image.fromarray(255 - colours()).convert("YCbCr").split(), Image.new("L", (WIDTH, HEIGHT), 255)]
    stored = Image.merge("CMYK", [channel.point(lambda value: 255 - value) for channel in channels])
    data = bytearray(written(stored, "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2  # the transform
    return bytes(data)


LOSSY = 14  # of 255 that a JPEG may be off


def kinds() -> dict[str, tuple[bytes, np.ndarray, int]]:
    """File name -> bytes, pixels, how far a pixel may be off."""
    image = Image.fromarray(colours())
    clear = image.copy()
    clear.putalpha(Image.fromarray(colours()[:, :, 0]))
    few = image.quantize(32)
    cmyk = image.convert("CMYK")
    bilevel = Image.fromarray(colours()[:, :, 0]).convert("1")
    grey_8 = Image.fromarray(colours()[:, :, 1])
    misty = grey_8.copy()
    misty.putalpha(Image.fromarray(colours()[:, :, 0]))
    deeper = colours().astype(np.uint16)
    opaque = np.full((HEIGHT, WIDTH, 1), 65535, np.uint16)
    grey_16, lossless = np.asarray(grey_8).astype(np.uint16), {"lossless": True, "exact": True}
    exact = {
        "rgb.png": (written(image, "PNG"), colours()),
        "rgb.bmp": (written(image, "BMP"), colours()),
        "profile.png": (written(image, "PNG", icc_profile=ImageCms.ImageCmsProfile(PROFILE).tobytes()), colours()),
        "exif_packed.tiff": (turned(6, "TIFF"), colours()),
        "16.png": (written(Image.fromarray(257 * grey_16), "PNG"), grey(grey_16)),
        "16.tif": (written(Image.fromarray(257 * grey_16), "TIFF"), grey(grey_16)),
        "16.ppm": (written(Image.fromarray(257 * grey_16), "PPM"), grey(grey_16)),
        "16_rgb.png": (deep(".png", 257 * deeper), colours()),
        "16_rgb.tif": (deep(".tif", 257 * deeper, cv2.IMWRITE_TIFF_COMPRESSION, 5), colours()),
        "12_in_16.png": (written(Image.fromarray(16 * grey_16), "PNG"), grey(grey_16)),
        "12_in_16.tif": (written(Image.fromarray(16 * grey_16 + 9), "TIFF"), grey(grey_16)),
        "12_in_16_rgb.png": (deep(".png", 16 * deeper + 9), colours()),
        "12_in_16_rgba.png": (deep(".png", np.dstack([16 * deeper, opaque >> 4])), colours()),
        "12_in_16_rgb.tif": (deep(".tif", 16 * deeper, cv2.IMWRITE_TIFF_COMPRESSION, 1), colours()),
        "12_in_16_packed.tif": (deep(".tif", 16 * deeper, cv2.IMWRITE_TIFF_COMPRESSION, 5), colours()),
        "8_in_16.png": (written(Image.fromarray(grey_16), "PNG"), grey(grey_16)),
        "8_in_16_rgb.png": (deep(".png", deeper), colours()),
        "1_bit.png": (written(bilevel, "PNG"), grey(255 * np.asarray(bilevel))),
        "grey.png": (written(grey_8, "PNG"), grey(grey_16)),
        "grey_clear.png": (written(misty, "PNG"), grey(grey_16)),
        "clear.png": (written(clear, "PNG"), colours()),
        "clear.webp": (written(clear, "WEBP", **lossless), colours()),
        "palette.png": (written(few, "PNG"), np.asarray(few.convert("RGB"))),
        "palette_clear.png": (written(few, "PNG", transparency=bytes(range(32))), np.asarray(few.convert("RGB"))),
        "palette.gif": (written(few, "GIF"), np.asarray(few.convert("RGB"))),
        "grey.pgm": (written(grey_8, "PPM"), grey(grey_16)),
        "cmyk.tif": (written(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB"))),
    }
    exact |= {f"exif_{tag}.png": (turned(tag, "PNG"), colours()) for tag in range(1, 9)}
    lossy = {
        "exif.jpg": (turned(6, "JPEG"), colours()),
        "rgb.jfif": (written(image, "JPEG", quality=95), colours()),
        "progressive.jpg": (written(image, "JPEG", quality=95, progressive=True), colours()),
        "grey.jpg": (written(grey_8, "JPEG", quality=95), grey(grey_16)),
        "cmyk.jpg": (written(cmyk, "JPEG", quality=95), colours()),
        "ycck.jpg": (ycck(), colours()),
        "two.jpg": (written(image, "MPO", quality=95, save_all=True, append_images=[image.rotate(180)]), colours()),
    }
    if features.check("jpg_2000"):
        exact["rgb.jp2"] = written(image, "JPEG2000", irreversible=False), colours()
    if features.check("avif"):
        lossy["rgb.avif"] = written(image, "AVIF", quality=95), colours()
    return {name: (*value, 0) for name, value in exact.items()} | {
        name: (*value, LOSSY) for name, value in lossy.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of pictures of all kinds, registered with Detectron2."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    box = {"category_id": 9, "bbox": [1, 2, 25, 36], "area": 900, "iscrowd": 0}
    content = {"images": [], "annotations": [], "categories": [{"id": 9, "name": "nut"}]}
    for number, (name, (data, _, _)) in enumerate(kinds().items(), start=1):
        (root / "images" / name).write_bytes(data)
        content["images"].append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        content["annotations"].append(box | {"id": number, "image_id": number})
    (root / "all.json").write_text(json.dumps(content))
    register_coco_folder(NAME, root / "all.json", root / "images")
    yield root / "images"
    DatasetCatalog.pop(NAME)
    MetadataCatalog.pop(NAME)


Pictures = dict[str, np.ndarray]  # by name of the file


def loaders(folder: Path) -> dict[str, Pictures]:
    """Detectron2's ways: training, ``--eval-only``, and the pictures that a config is calibrated on."""
    count = len(list(folder.iterdir()))
    opts = ["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TEST", 0]
    opts += ["INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.RANDOM_FLIP", "none", "MODEL.ROI_HEADS.NUM_CLASSES", 1]
    opts += ["MODEL.NORTON.CALIBRATION_IMAGES", count]
    cfg = load_config("norton_faster_rcnn.yaml", [*opts, "SOLVER.IMS_PER_BATCH", 1, "SEED", 0, "INPUT.FORMAT", "BGR"])
    batches = {
        "training": itertools.islice(build_train_loader(cfg), count),
        "--eval-only": build_test_loader(cfg, NAME),
    }
    pixels = {
        way: {Path(batch[0]["file_name"]).name: as_picture(batch[0]["image"].flip(0)) for batch in given}
        for way, given in batches.items()
    }
    sample = training_pictures(cfg, lambda image: as_picture(to_input(cfg)(image)["image"].flip(0)), count)
    names = sorted(str(path) for path in folder.iterdir())
    random.Random(0).shuffle(names)  # as they are drawn
    return pixels | {"calibration of a config": dict(zip((Path(name).name for name in names), sample, strict=True))}


def commands(folder: Path, tmp_path: Path, monkeypatch) -> dict[str, Pictures]:
    """``evaluate_detector``, ``visualize``, and the classifier's ``finetune`` and ``evaluate``."""
    seen: list[np.ndarray] = []

    def look(picture: np.ndarray) -> Detections:
        seen.append(picture)
        return Detections.none()

    evaluate_predictor(look, NAME, output_dir=str(tmp_path))
    records = [Path(record["file_name"]).name for record in DatasetCatalog.get(NAME)]
    drawn: Pictures = {}
    monkeypatch.setattr(visualize_results, "beside", lambda pictures: pictures[0])
    monkeypatch.setattr(visualize_results.Overlay, "draw", lambda _, image, *__, **___: image)
    write = visualize_results.PictureSink.write
    monkeypatch.setattr(
        visualize_results.PictureSink, "write", lambda _, image, frame: drawn.update({frame.name: image[:, :, ::-1]})
    )
    (tmp_path / "none.json").write_text("[]")
    words = {"predictions": str(tmp_path / "none.json"), "dataset": NAME, "images": 999, "seed": 0}
    visualize_results.draw(argparse.Namespace(**words, confidence_threshold=0.5), tmp_path / "drawn")
    monkeypatch.setattr(visualize_results.PictureSink, "write", write)
    return {"evaluate_detector": dict(zip(records, seen, strict=True)), "visualize": drawn}


def as_picture(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).round().byte().numpy()


def cropped(tensor: torch.Tensor) -> np.ndarray:
    """A classifier's input as pixels."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (TORCHVISION.mean, TORCHVISION.std))
    return as_picture(tensor * std + mean)


def test_all_roads_give_the_same_pixels(folder, tmp_path, monkeypatch):
    files = sorted(folder.iterdir())
    listed = [file for file in files if file.suffix != ".gif"]  # it is read where it is named
    sent = [file for file in files if file.suffix in (".png", ".jpg")]
    roads = loaders(folder) | commands(folder, tmp_path, monkeypatch)
    roads["its bytes"] = {file.name: read_image(file.read_bytes()) for file in files}
    roads["calibration"], roads["calibration of torchvision's"] = {}, {}
    for file in listed:
        (picture,), _ = read_sample(folder, [file], lambda image: image, 1)
        roads["calibration"][file.name] = picture
        roads["calibration of torchvision's"][file.name] = as_picture(255 * to_torchvision_input(picture))
    roads["demo"] = {frame.name: frame.image[:, :, ::-1] for frame in open_source(str(folder))}
    roads["server"] = {file.name: decode(file.read_bytes()) for file in sent}
    fewer = {"demo": listed, "calibration": listed, "calibration of torchvision's": listed, "server": sent}
    assert all(set(roads[road]) == {file.name for file in fewer.get(road, files)} for road in roads)
    for name, (_, expected, off) in kinds().items():
        truth = read_image(folder / name)
        assert truth.dtype == np.uint8 and truth.shape == expected.shape, name
        assert np.abs(truth.astype(int) - expected).max() <= off, name
        for road, pictures in roads.items():
            if name in pictures:
                assert np.array_equal(pictures[name], truth), (road, name)
        assert short_side(folder / name) == HEIGHT


def test_classifiers_see_the_same_pixels(folder, tmp_path):
    (tmp_path / "one").symlink_to(folder)
    middle = slice((WIDTH - HEIGHT) // 2, (WIDTH + HEIGHT) // 2)
    data = ClassFolder(tmp_path, 1, TORCHVISION, size=HEIGHT, resize=HEIGHT)
    transform = make_transform(TORCHVISION, ImageSize(HEIGHT, HEIGHT))
    for index, file in enumerate(data.files):
        expected = read_image(file)[:, middle]
        for tensor in (data[index][0], look(file, transform)):  # finetune and evaluate; grad_cam
            assert np.array_equal(cropped(tensor), expected), file.name
    (one,), broken, _ = load_images(folder, TORCHVISION, count=1, size=HEIGHT, resize=HEIGHT, seed=0)
    assert not broken and any(np.array_equal(cropped(one), read_image(file)[:, middle]) for file in data.files)


def test_pictures_that_hold_fewer_bits_than_their_files_are_told_once(tmp_path, caplog):
    decode_module._told.clear()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / name)
        assert read_image(tmp_path / name)[0, :, 0].tolist() == [0, 255]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/a.png: taken as a picture of 12 bits, as no value of its 16 is larger; so are others"
    ]
    Image.fromarray(np.array([[0, 4096, 65535]], np.uint16)).save(tmp_path / "c.png")
    assert read_image(tmp_path / "c.png")[0, :, 0].tolist() == [0, 16, 255]


def test_damaged_exif_data_are_passed_over(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f no directory")
    assert np.array_equal(read_image(tmp_path / "a.png"), colours())


def test_a_tiff_of_12_bits(tmp_path):
    """0, 1000, 2048 and 4095 of 4095, packed."""
    values = [0, 1000, 2048, 4095]
    packed = int("".join(f"{value:012b}" for value in values), 2).to_bytes(6, "big")
    tags = [(256, 3, 1, 4), (257, 3, 1, 1), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, len(packed))]
    head = struct.pack("<2sHI", b"II", 42, 16) + packed + b"\0\0" + struct.pack("<H", len(tags))
    (tmp_path / "a.tif").write_bytes(head + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4))
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [value >> 4 for value in values]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.float32([[0.5]]), "pixels are floating-point numbers"),
        (np.int32([[70000]]), "pixels are signed or 32-bit integers"),
    ],
)
def test_pixels_of_no_known_range_are_refused(values, reason, tmp_path):
    Image.fromarray(values).save(tmp_path / "b.tiff")
    with pytest.raises(UnreadableImage, match=rf"b\.tiff: expected an image, .*\({reason}\); remove it") as caught:
        read_image(tmp_path / "b.tiff")
    assert caught.value.reason == reason


def test_what_is_no_picture(tmp_path):
    for data in (b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"):
        (tmp_path / "a.png").write_bytes(data)
        for read in (read_image, short_side):
            with pytest.raises(UnreadableImage, match=r"a\.png: expected an image, got a damaged or other file"):
                read(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"none\.png: expected an image"):
        read_image(tmp_path / "none.png")


def test_bytes_of_the_formats_and_the_size_that_are_meant():
    data = io.BytesIO()
    Image.fromarray(colours()).save(data, "webp")
    with pytest.raises(UnreadableImage, match="image: expected an image"):
        read_image(data.getvalue(), formats=("JPEG", "PNG"))
    with pytest.raises(InputError, match=f"frame: expected at most 3071 pixels, got {WIDTH}x{HEIGHT}"):
        read_image(data.getvalue(), name="frame", most_pixels=3071)
    assert read_image(data.getvalue(), most_pixels=3072).shape == (HEIGHT, WIDTH, 3)

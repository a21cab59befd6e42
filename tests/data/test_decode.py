"""Every road of a picture into a network gives the pixels of the one reader; what a file leaves open is settled."""

import io
import json
import struct

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

from norton_det.d2.build import load_config, to_input
from norton_det.d2.evaluation import evaluate_predictor
from norton_det.d2.initial_weights import training_pictures
from norton_det.d2.loader import build_test_loader, build_train_loader
from norton_det.data import register_coco_folder
from norton_det.data.decode import UnreadableImage, read_image, short_side
from norton_det.data.images import load_images, load_pictures
from norton_det.deploy import Detections
from norton_det.live import open_source
from norton_det.live.server import decode
from norton_det.models.preprocessing import TORCHVISION
from norton_det.tv.adapter import to_input as to_torchvision_input
from norton_det.utils.errors import InputError

HEIGHT, WIDTH = 48, 64
NAME = "decoded"


def colours() -> np.ndarray:
    """(48, 64, 3), uint8: what no turn and no exchange of colours leaves as it is."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([4 * x, 5 * y, 255 - 2 * x - y], 2).astype(np.uint8)


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = orientation
    return data


def grey_16() -> np.ndarray:
    """(48, 64), uint16, over the whole range."""
    return np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None].astype(np.uint8), 3, 2)


def stored_sideways() -> Image.Image:
    """``colours`` as a camera that was held upright stores it, to be turned by tag 6."""
    return Image.fromarray(colours()).transpose(Image.Transpose.ROTATE_90)


# kind -> (suffix, what writes it, the pixels it has)
def kinds() -> dict[str, tuple[str, Image.Image, dict[str, object], np.ndarray]]:
    image = Image.fromarray(colours())
    clear = image.copy()
    clear.putalpha(Image.fromarray(colours()[:, :, 0]))
    few = image.quantize(32)
    cmyk = image.convert("CMYK")
    bilevel = Image.fromarray(colours()[:, :, 0]).convert("1")
    grey_8 = Image.fromarray(colours()[:, :, 1])
    misty = grey_8.copy()
    misty.putalpha(Image.fromarray(colours()[:, :, 0]))
    return {
        "rgb": (".png", image, {}, colours()),
        "exif": (".png", stored_sideways(), {"exif": exif(6)}, colours()),
        "exif of a TIFF": (".tif", stored_sideways(), {"exif": exif(6)}, colours()),
        "exif of a packed TIFF": (".tiff", stored_sideways(), {"exif": exif(6), "compression": "tiff_lzw"}, colours()),
        "16 bits": (".png", Image.fromarray(grey_16()), {}, grey(grey_16() >> 8)),
        "16 bits of a TIFF": (".tif", Image.fromarray(grey_16()), {}, grey(grey_16() >> 8)),
        "16 bits of a PGM": (".ppm", Image.fromarray(grey_16()), {}, grey(grey_16() >> 8)),
        "16 dark bits": (".png", Image.fromarray(grey_16() >> 8), {}, grey(grey_16() * 0)),
        "1 bit": (".png", bilevel, {}, grey(255 * np.asarray(bilevel))),
        "grey": (".png", grey_8, {}, grey(colours()[:, :, 1])),
        "grey, transparent": (".png", misty, {}, grey(colours()[:, :, 1])),
        "transparent": (".png", clear, {}, colours()),
        "transparent WebP": (".webp", clear, {"lossless": True, "exact": True}, colours()),
        "palette": (".png", few, {}, np.asarray(few.convert("RGB"))),
        "transparent palette": (".png", few, {"transparency": bytes(range(32))}, np.asarray(few.convert("RGB"))),
        "CMYK": (".tif", cmyk, {}, np.asarray(cmyk.convert("RGB"))),
    }


@pytest.fixture
def folder(request, tmp_path):
    """A data set of one picture of a kind, registered with Detectron2, and the pixels that it has."""
    suffix, image, options, expected = kinds()[request.param]
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / f"a{suffix}", **options)
    box = {"id": 1, "image_id": 4, "category_id": 9, "bbox": [1, 2, 25, 36], "area": 900, "iscrowd": 0}
    content = {
        "images": [{"id": 4, "file_name": f"a{suffix}", "height": HEIGHT, "width": WIDTH}],
        "annotations": [box],
        "categories": [{"id": 9, "name": "nut"}],
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    register_coco_folder(NAME, tmp_path / "all.json", tmp_path / "images")
    yield tmp_path / "images", expected
    DatasetCatalog.pop(NAME)
    MetadataCatalog.pop(NAME)


@pytest.mark.parametrize("folder", kinds(), indirect=True)
def test_all_roads_give_the_same_pixels(folder, tmp_path):
    place, expected = folder
    (file,) = place.iterdir()
    opts = ["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TEST", 0]
    opts += ["INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.RANDOM_FLIP", "none", "MODEL.ROI_HEADS.NUM_CLASSES", 1]
    cfg = load_config("norton_faster_rcnn.yaml", [*opts, "SOLVER.IMS_PER_BATCH", 1, "SEED", 0, "INPUT.FORMAT", "BGR"])
    seen = []

    def look(picture: np.ndarray) -> Detections:
        seen.append(picture)
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    evaluate_predictor(look, NAME, output_dir=str(tmp_path))
    (calibration,), _ = load_pictures(place, lambda image: image)
    (upright,), _, _ = load_images(place, TORCHVISION, size=HEIGHT, resize=HEIGHT)
    mean, std = (torch.tensor(values)[:, None, None] for values in (TORCHVISION.mean, TORCHVISION.std))
    middle = slice((WIDTH - HEIGHT) // 2, (WIDTH + HEIGHT) // 2)
    tensors = {
        "training": next(iter(build_train_loader(cfg)))[0]["image"].flip(0),
        "--eval-only": next(iter(build_test_loader(cfg, NAME)))[0]["image"].flip(0),
        "calibration of a config": to_input(cfg)(training_pictures(cfg, lambda image: image, 1)[0])["image"].flip(0),
        "calibration of torchvision's": 255 * to_torchvision_input(calibration),
    }
    pictures = {name: tensor.permute(1, 2, 0).round().byte().numpy() for name, tensor in tensors.items()}
    pictures |= {"the reader": read_image(file), "its bytes": read_image(file.read_bytes()), "calibration": calibration}
    pictures |= {"evaluate_detector": seen[0], "demo": next(iter(open_source(str(file)))).image[:, :, ::-1]}
    if file.suffix == ".png":
        pictures["server"] = decode(file.read_bytes())
    for name, picture in pictures.items():
        assert picture.dtype == np.uint8 and np.array_equal(picture, expected), name
    crop = torch.from_numpy(expected[:, middle].copy()).permute(2, 0, 1)
    torch.testing.assert_close(upright * std + mean, crop.float(), atol=1e-3, rtol=0)
    assert short_side(file) == HEIGHT


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation, tmp_path):
    """Each is undone: a picture that is stored as its tag says comes out upright."""
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    methods = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    image = Image.fromarray(colours())
    stored = image if orientation == 1 else image.transpose(Image.Transpose(methods[back]))
    stored.save(tmp_path / "a.png", exif=exif(orientation))
    assert np.array_equal(read_image(tmp_path / "a.png"), colours())


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

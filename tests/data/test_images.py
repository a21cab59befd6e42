"""Folders of images: sizes, classes, and what cannot be read."""

import pytest
import torch
from PIL import Image

from norton_det.data.classes import WNIDS, ClassFolder, match_classes, read_classes
from norton_det.data.decode import read_image
from norton_det.data.images import ImageSize, choose_size, find_images, load_images, make_transform
from norton_det.models.preprocessing import MSRA, TORCHVISION
from norton_det.utils.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Three classes of two pictures, 80 x 60, each of one colour."""
    for place, name in enumerate(("cat", "dog", "owl")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(2):
            color = (60 * place + 20, 10 * index, 200)
            Image.new("RGB", (80, 60), color).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


def test_load_images(folder):
    images, broken, shape = load_images(folder, TORCHVISION)
    assert images.shape == (6, 3, 52, 52) and not broken and shape == ImageSize(52, 60)
    blue = (200 - TORCHVISION.mean[2]) / TORCHVISION.std[2]
    torch.testing.assert_close(images[:, 2], torch.full((6, 52, 52), blue))
    again, _, _ = load_images(folder, TORCHVISION, count=3, size=48, resize=50, seed=1)
    assert again.shape == (3, 3, 48, 48)
    assert torch.equal(again, load_images(folder, TORCHVISION, count=3, size=48, resize=50, seed=1)[0])


def test_colour_order(folder):
    image = read_image(folder / "owl" / "0.png")
    rgb, bgr = (make_transform(kind, ImageSize(32, 40))(image) for kind in (TORCHVISION, MSRA))
    assert bgr[0, 0, 0] == pytest.approx(200 - MSRA.mean[0], abs=1e-3)  # blue comes first
    assert rgb[0, 0, 0] == pytest.approx((140 - TORCHVISION.mean[0]) / TORCHVISION.std[0], abs=1e-3)


def test_broken_images_are_skipped_and_named(folder):
    (folder / "cat" / "0.png").write_bytes(b"not an image")
    whole = (folder / "dog" / "1.png").read_bytes()
    (folder / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    images, broken, _ = load_images(folder, TORCHVISION)
    assert len(images) == 4 and {f"{path.parent.name}/{path.name}" for path in broken} == {"cat/0.png", "dog/1.png"}
    data = ClassFolder(folder, 3, TORCHVISION)
    assert len(data) == 6 and [data[index][1] for index in range(6)] == [-1, 0, 1, -1, 2, 2]


def test_grey_and_transparent_pictures(tmp_path):
    Image.new("L", (64, 64), 7).save(tmp_path / "grey.png")
    Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(tmp_path / "clear.png")
    Image.new("P", (64, 64)).save(tmp_path / "palette.png")
    images, broken, _ = load_images(tmp_path, TORCHVISION)
    assert len(images) == 3 and not broken


def test_sizes(folder):
    files = find_images(folder)
    assert choose_size(files) == ImageSize(52, 60)  # what they have, when it is small
    assert choose_size(files, 128) == ImageSize(128, 146)
    assert choose_size(files, 128, 160) == ImageSize(128, 160)
    assert choose_size(files, resize=64) == ImageSize(56, 64)
    with pytest.raises(InputError, match="expected 32 <= size <= resize, got 224 and 160"):
        choose_size(files, 224, 160)


def test_large_pictures_get_the_usual_size(tmp_path):
    Image.new("RGB", (600, 500)).save(tmp_path / "a.jpg")
    assert choose_size(find_images(tmp_path)) == ImageSize(224, 256)


def test_class_folder(folder):
    data = ClassFolder(folder, 3, TORCHVISION, size=32, resize=40)
    assert data.classes == {"cat": 0, "dog": 1, "owl": 2} and data.labels == [0, 0, 1, 1, 2, 2]
    image, label = data[5]
    assert image.shape == (3, 32, 32) and label == 2
    listed = ClassFolder(folder, 4, TORCHVISION, classes=["owl", "cow", "dog", "cat"])
    assert listed.classes == {"cat": 3, "dog": 2, "owl": 0}


def test_augmentation_varies(tmp_path):
    (tmp_path / "one").mkdir()
    Image.effect_noise((80, 80), 90).save(tmp_path / "one" / "0.png")
    data = ClassFolder(tmp_path, 1, TORCHVISION, size=32, resize=40, augment=True)
    assert not torch.equal(data[0][0], data[0][0]) and data[0][0].shape == (3, 32, 32)


def test_wnids():
    known = WNIDS.read_text().split()
    assert len(known) == 1000 == len(set(known)) and known == sorted(known)
    assert all(name.startswith("n") and len(name) == 9 for name in known)
    found = match_classes(WNIDS, ["n01440764", "n03888257"], 1000)  # tench and parachute
    assert found == {"n01440764": 0, "n03888257": 701}


@pytest.mark.parametrize(
    ("names", "outputs", "classes", "pattern"),
    [
        ([], 3, None, "expected one folder per class, found no folders"),
        (["a", "b"], 3, None, "expected 3 class folders, one for each output of the head, got 2"),
        (["a", "b"], 1000, None, "expected folders named as the head's classes .*got 'a'"),
        (["n01440764", "zebra"], 1000, None, "expected folders named as the head's classes .*got 'zebra'"),
        (["a"], 2, ["a"], "classes: expected 2, one for each output, got 1"),
    ],
)
def test_classes_that_do_not_match(tmp_path, names, outputs, classes, pattern):
    with pytest.raises(InputError, match=pattern):
        match_classes(tmp_path, names, outputs, classes)


def test_read_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("golf ball\n\ntench \n", encoding="utf-8")
    assert read_classes(path) == ["golf ball", "tench"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="expected text, one folder name a line"):
        read_classes(path)
    with pytest.raises(InputError, match="expected a list of classes"):
        read_classes(tmp_path / "none.txt")


def test_what_a_mac_keeps_beside_a_picture_is_none(folder):
    (folder / "cat" / "._0.png").write_bytes(b"\0\5\x16\7 attributes")
    assert len(find_images(folder)) == 6 == len(ClassFolder(folder, 3, TORCHVISION))


def test_no_images(tmp_path):
    with pytest.raises(InputError, match="expected a folder of images, found none"):
        load_images(tmp_path / "none", TORCHVISION)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"expected images .*found none"):
        load_images(tmp_path, TORCHVISION)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"got 1 that cannot be read \(first: a\.png\)"):
        load_images(tmp_path, TORCHVISION)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected images in its class folders"):
        ClassFolder(tmp_path, 1, TORCHVISION)

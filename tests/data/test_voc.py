"""Pascal VOC as tools and systems leave it: every object arrives, what does not is counted or refused by its file."""

import errno
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from norton_det.data.coco import read_coco
from norton_det.data.folders import atomic_folder
from norton_det.data.voc import convert_voc, remarks_on
from norton_det.data.voc_layout import VocFolder
from norton_det.utils.errors import InputError
from tests.messages import refusal

WIDTH, HEIGHT = 40, 30
BOX = (3, 4, 13, 24)
BOM = "\N{BYTE ORDER MARK}"


def thing(name: str = "nut", box: tuple[object, ...] = BOX, **fields: object) -> str:
    corners = "".join(f"<{side}>{at}</{side}>" for side, at in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    more = "".join(f"<{field}>{value}</{field}>" for field, value in fields.items())
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def size(width: object = WIDTH, height: object = HEIGHT) -> str:
    return f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"


@pytest.fixture
def voc(tmp_path: Path):
    """Writes annotations and a picture, each by its path; returns the folder."""
    root = tmp_path / "voc"

    def write(name: str = "a", content: str = size() + thing(), picture: str | None = None) -> Path:
        xml, image = root / "Annotations" / f"{name}.xml", root / "JPEGImages" / (picture or f"{name}.png")
        for file in (xml, image):
            file.parent.mkdir(parents=True, exist_ok=True)
        xml.write_text(f"<annotation>{content}</annotation>")
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(image)
        return root

    return write


def write_list(root: Path, name: str, text: str | bytes, folder: str = "ImageSets/Main") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())


def converted(root: Path, **options: object) -> dict[str, dict]:
    """What is written, once the reader of COCO files has taken it."""
    target = root.parent / "coco"
    contents = convert_voc(root, target, **options)
    for split, content in contents.items():
        assert read_coco(target / "annotations" / f"{split}.json", target / split) == content
    return contents


def boxes(content: dict) -> list[list[float]]:
    return [annotation["bbox"] for annotation in content["annotations"]]


def test_hidden_files_are_left(voc):
    root = voc()
    for name in ("Annotations/._a.xml", "Annotations/.DS_Store", "JPEGImages/._a.png", "Annotations/__MACOSX/a.xml"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"\x00\x05\x16\x07")
    write_list(root, "._train", b"\x00\x05")
    (content,) = converted(root).values()
    assert [image["file_name"] for image in content["images"]] == ["a.png"] and boxes(content) == [[3, 4, 10, 20]]


@pytest.mark.parametrize("said", ["", size(0, 0), size("", HEIGHT), size("unknown", "unknown"), size(-1, HEIGHT)])
def test_a_size_that_is_missing_is_that_of_the_picture(voc, said):
    content = converted(voc(content=said + thing()))["all"]
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (WIDTH, HEIGHT)
    assert remarks_on(content) == "1 sizes read from the picture"


def test_another_size_than_the_pictures_is_refused(voc):
    message = refusal(lambda: converted(voc(content=size(HEIGHT, WIDTH) + thing())))
    assert re.search(r"a\.xml: size: expected that of a\.png, 40 x 30 .*, got 30 x 40; ", message)


@pytest.mark.parametrize("box", [(13, 4, 3, 24), (3, 24, 13, 4), (13, 24, 3, 4), ("3.0", " 4 ", "13.00", "24")])
def test_swapped_corners_are_put_right_and_counted(voc, box):
    content = converted(voc(content=size() + thing(box=box)))["all"]
    assert boxes(content) == [[3, 4, 10, 20]]
    assert remarks_on(content) == ("1 boxes with swapped corners, put right" if 13 in box else "")


def test_what_is_dropped_is_counted(voc):
    flat, outside = thing(box=(5, 5, 5, 9)), thing(box=(WIDTH, 3, WIDTH + 4, 9))
    content = converted(voc(content=size() + thing() + flat + flat + outside + thing(difficult=1)))["all"]
    assert boxes(content) == [[3, 4, 10, 20]] * 2 and [a["iscrowd"] for a in content["annotations"]] == [0, 1]
    assert content["info"]["counts"] == {
        "boxes without area, dropped": 2,
        "boxes outside of their pictures, dropped": 1,
        "difficult objects, kept as crowds": 1,
    }


@pytest.mark.parametrize("at", ["nan", "inf", "-1e9", "", "a"])
def test_numbers_that_are_none_are_refused_with_their_file(voc, at):
    message = refusal(lambda: converted(voc(content=size() + thing(box=(3, 4, at, 24)))))
    assert re.search(rf"a\.xml: bndbox/xmax: expected a number of pixels, got '{re.escape(at)}'; ", message)


def test_folders_below_annotations_are_kept(voc):
    """As CVAT writes jobs: two pictures of one name, a list of the subset's name."""
    root = voc("job_1/a")
    voc("job_2/a", size() + thing(box=(1, 2, 5, 6)))
    write_list(root, "default", "job_2/a\njob_1/a\n")
    contents = converted(root)
    assert list(contents) == ["default"] and boxes(contents["default"]) == [[3, 4, 10, 20], [1, 2, 4, 4]]
    assert [image["file_name"] for image in contents["default"]["images"]] == ["job_1/a.png", "job_2/a.png"]
    assert "job_3" in refusal(lambda: write_list(root, "default", "job_3/b") or convert_voc(root, root.parent / "new"))


@pytest.mark.parametrize(
    "text",
    [
        f"{BOM}a\n",
        f"{BOM}a\r\n".encode("utf-16-le"),
        "a.png\n\n",
        "a.xml",
        "JPEGImages/a.png",
        ".\\job\\a",
        "a  1",
        "job/a -1",
    ],
)
def test_lists_in_any_form(voc, text):
    root = voc("job/a") if "job" in str(text) else voc()
    write_list(root, "train", text)
    (content,) = converted(root).values()
    assert boxes(content) == [[3, 4, 10, 20]]


def test_lists_of_any_name_but_not_of_one_class(voc):
    root = voc()
    for name in ("test", "train", "extra", "nut_train", "empty"):
        write_list(root, name, "" if name == "empty" else "a 1" if name == "nut_train" else "a")
    assert VocFolder(root).splits() == ["train", "test", "extra"]
    assert list(converted(root, splits=["nut_train"])) == ["nut_train"]
    assert "did you mean train" in refusal(lambda: convert_voc(root, root.parent / "new", splits=["trian"]))


@pytest.mark.parametrize(
    ("picture", "filename"),
    [
        ("a.PNG", "other.jpg"),
        ("scan 7.png", "C:\\pictures\\scan 7.jpg"),
        ("deep/er/a.png", ""),
        ("b.png", "/home/x/b.png"),
    ],
)
def test_a_picture_is_that_of_the_name_or_the_one_that_is_named(voc, picture, filename):
    content = converted(voc(content=f"<filename>{filename}</filename>" + size() + thing(), picture=picture))["all"]
    assert content["images"][0]["file_name"] == picture


def test_names_of_classes_in_another_spelling_are_one_class(voc):
    root = voc(content=size() + thing("Nut") + thing(" nut ") + thing("nut") + thing("hex-bolt") + thing("hex bolt"))
    content = converted(root)["all"]
    assert [category["name"] for category in content["categories"]] == ["hex-bolt", "nut"]
    assert [annotation["category_id"] for annotation in content["annotations"]] == [2, 2, 2, 1, 1]
    assert remarks_on(content) == "2 names of classes in another spelling"
    message = refusal(lambda: convert_voc(root, root.parent / "new", classes=["nuts", "bolt"]))
    assert "a.xml: expected one of nuts, bolt, got 'Nut'; did you mean nuts?" in message


def test_a_mend_is_one_that_can_help(tmp_path):
    for number, mend in ((errno.ENOSPC, "free some space"), (errno.ENOENT, "choose another folder")):
        with pytest.raises(InputError, match=f"could not be written .*; {mend}$"), atomic_folder(tmp_path / "new"):
            raise OSError(number, "reason")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation>")
    assert refusal(lambda: converted(tmp_path)).endswith("; export it again, or take it away")
    assert not (tmp_path.parent / "coco").exists()

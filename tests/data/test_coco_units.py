"""Boxes that are not COCO's are known by the pictures and polygons beside them; the mend that is named converts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from norton_det.data import convert_boxes
from norton_det.data.coco import check_coco_file, read_coco
from norton_det.data.coco_checks import check_content
from norton_det.utils.errors import InputError

WIDTH, HEIGHT = 400, 300
TO = {
    "xywh": lambda x, y, w, h: [x, y, w, h],
    "corners": lambda x, y, w, h: [x, y, x + w, y + h],
    "center": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
    "yx-corners": lambda x, y, w, h: [y, x, y + h, x + w],
}


def made(count: int = 40, largest: int = 120, form: str = "xywh", scale: float = 0, polygons: bool = False) -> dict:
    """Boxes of objects anywhere in two pictures, written in a form; with a scale as shares of the picture."""
    rng = np.random.default_rng(count)
    annotations = []
    for number in range(count):
        w, h = map(int, rng.integers(8, largest, 2))
        x, y = int(rng.integers(0, WIDTH - w + 1)), int(rng.integers(0, HEIGHT - h + 1))
        box = TO[form](
            *(
                (x, y, w, h)
                if not scale
                else (x / WIDTH * scale, y / HEIGHT * scale, w / WIDTH * scale, h / HEIGHT * scale)
            )
        )
        outline = {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]} if polygons else {}
        record = {"id": number + 1, "image_id": number % 2, "category_id": 1, "bbox": box, "area": w * h, "iscrowd": 0}
        annotations.append(record | outline)
    images = [{"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH} for number in range(2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nut"}]}


def problem(content: dict, file: Path = Path("ann.json")) -> str:
    try:
        check_content(file, content)
    except InputError as error:
        assert "\n" not in str(error) and ";" in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("scale", [0, 1, 100])
@pytest.mark.parametrize("form", ["xywh", "corners", "center"])
def test_other_forms_are_named_and_the_mend_converts_them(tmp_path, form, scale, polygons):
    content, right = made(form=form, scale=scale, polygons=polygons), made(polygons=polygons)
    file = tmp_path / "ann.json"
    file.write_text(json.dumps(content))
    message = problem(content, file)
    if form == "xywh" and not scale:
        assert not message
        return
    unit = {0: "", 1: "relative-", 100: "percent-"}[scale]
    assert ("look relative to their pictures, 0 to " in message) == bool(scale)
    words = re.search(r"convert_boxes\('(.*?)', '(.*?)', '(.*?)'\)", message).groups()
    assert words == (str(file), str(tmp_path / "ann_pixels.json"), unit + form)
    convert_boxes(*words)
    mended = json.loads((tmp_path / "ann_pixels.json").read_text())
    assert not problem(mended)
    for ours, expected in zip(mended["annotations"], right["annotations"], strict=True):
        assert ours["bbox"] == pytest.approx(expected["bbox"]) and ours["area"] == pytest.approx(expected["area"])
        assert ours.get("segmentation") == expected.get("segmentation")


def test_the_mend_is_a_command(tmp_path):
    file = tmp_path / "ann.json"
    file.write_text(json.dumps(made(form="corners")))
    program = re.search(r'python -c "(.*)"$', problem(json.loads(file.read_text()), file))[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "ann_pixels.json").read_text())["annotations"] == made()["annotations"]


def test_corners_with_y_first(tmp_path):
    assert "look like corners [y1, x1, y2, x2]" in problem(made(form="yx-corners"))


def test_polygons_and_keypoints_are_scaled_with_relative_boxes(tmp_path):
    content = made(3, scale=1)
    content["annotations"][0] |= {
        "bbox": [0.5, 0.5, 0.5, 0.5],
        "segmentation": [[0.5, 0.5, 1.0, 0.5, 0.5, 1.0]],
        "area": 0.125,
        "keypoints": [0.5, 0.5, 2],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    convert_boxes(tmp_path / "a.json", tmp_path / "b.json", "relative-xywh")
    first = json.loads((tmp_path / "b.json").read_text())["annotations"][0]
    assert first["segmentation"] == [[200, 150, 400, 150, 200, 300]] and first["keypoints"] == [200, 150, 2]
    assert first["area"] == 0.125 * WIDTH * HEIGHT
    for form in ("relative", "corners-relative", ""):
        with pytest.raises(InputError, match="form: expected xywh, corners, center, yx-corners, or relative- or"):
            convert_boxes(tmp_path / "a.json", tmp_path / "c.json", form)


@pytest.mark.parametrize("field", ["segmentation", "keypoints"])
def test_relative_outlines_beside_boxes_in_pixels(field):
    content = made()
    content["categories"][0]["keypoints"] = ["tip"]
    for thing in content["annotations"]:
        thing |= {"keypoints": [20, 30, 2], "num_keypoints": 1}
        thing[field] = {"segmentation": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]], "keypoints": [0.2, 0.3, 2]}[field]
    assert f"ann.json: {field}: look relative to their pictures, 0 to 1, beside boxes in pixels; " in problem(content)


def test_boxes_for_pictures_of_another_size():
    content = made()
    for image in content["images"]:
        image["height"], image["width"] = HEIGHT // 4, WIDTH // 4
    assert re.search(
        r"boxes: \d\d of 40 reach out of their pictures: they look annotated at another size; scale", problem(content)
    )


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_a_few_boxes_outside_are_let_pass(count):
    content = made(count, 40)
    for thing in content["annotations"][: max(1, count // 8)] if count > 2 else ():
        thing["bbox"] = [WIDTH - 10, 5, 30, 20]
    assert not problem(content)


def test_one_object_in_the_middle_of_each_picture_is_no_other_form():
    """Also as corners or from the middle they would lie inside: nothing speaks against COCO's form."""
    content = made(2)
    for thing in content["annotations"]:
        thing["bbox"] = [10, 10, WIDTH - 20, HEIGHT - 20]
    assert not problem(content)


def test_small_boxes_near_the_corner_are_no_per_cent():
    content = made(40, 30)
    for thing in content["annotations"]:
        thing["bbox"][:2] = [thing["bbox"][0] / 8, thing["bbox"][1] / 8]
    assert not problem(content)


def test_real_data_pass(shared):
    files = [
        file for name in ("bccd", "nuclei", "tubes", "coco-mini") for file in (shared / "data" / name).rglob("*.json")
    ]
    assert len(files) >= 11
    for file in files:
        assert not problem(json.loads(file.read_text()), file)


def write(folder: Path, content: dict, size: tuple[int, int] = (WIDTH, HEIGHT), **options: object) -> Path:
    for image in content["images"]:
        Image.new("L", size).save(folder / image["file_name"], **options)
    (folder / "ann.json").write_text(json.dumps(content))
    return folder / "ann.json"


def test_pictures_of_another_size_are_named_before_anything_starts(tmp_path):
    file = write(tmp_path, made(), (HEIGHT, WIDTH))
    with pytest.raises(
        InputError, match=r"image 0: expected the size of .*0\.png, 300 x 400 .* got 400 x 300; swap its"
    ):
        read_coco(file, tmp_path)
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn: 300 x 400 in the file, 400 x 300 as it is read
    read_coco(write(tmp_path, made(), (HEIGHT, WIDTH), exif=turned), tmp_path)


def test_what_is_not_trained_on_is_counted(tmp_path):
    content = made(10, 40)
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["bbox"] = [WIDTH - 10, 5, 30, 20]
    content["annotations"][2]["iscrowd"] = 1
    content["images"] += [content["images"][0] | {"id": number} for number in (7, 8)]
    checked = check_coco_file(write(tmp_path, content), tmp_path)
    assert checked.remarks.split(", ") == [
        "1 crowds not trained on",
        "1 boxes without area not trained on",
        "1 boxes that reach out of their pictures",
        "cut there",
        "2 images without objects",
        "1 files listed twice",
        "as two pictures of which each lacks the other's objects",
    ]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert not check_coco_file(write(plain, made()), plain).remarks

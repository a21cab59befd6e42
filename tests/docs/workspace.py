"""A folder with the files that the pages speak of: small, but each a real one of its kind."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from norton_det.checkpoint.save import save_checkpoint
from norton_det.checkpoint.save import save_detector as save_whole
from norton_det.d2 import NortonCheckpointer, load_config
from norton_det.d2.build import build_detector
from norton_det.data.generate import annotation_file, generate_dataset
from norton_det.deploy.export import export
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.tv import fasterrcnn_norton_resnet50_fpn, save_detector
from tests import REPOSITORY
from tests.live.films import video

PICTURES = ("dog.jpg", "street.jpg", "cells.jpg", "photos/one.jpg", "photos/two.jpg")
FOLDERS = (
    "coco/val2017",
    "coco/train2017",
    *(f"imagenet/{split}/{c}" for split in ("train", "val") for c in "abcdefghij"),
)


def make(root: Path, data: Path | None) -> None:
    """Fill the folder; ``data`` has real photographs, which stand in for the generated ones where they are at hand."""
    for name in ("tools", "configs", "Makefile"):
        (root / name).symlink_to(REPOSITORY / name)
    (root / "datasets").mkdir()
    for script in (REPOSITORY / "datasets").glob("*.py"):
        (root / "datasets" / script.name).symlink_to(script)
    shapes = generate_dataset(root / "shapes", train=4, val=2, height=96, width=128, seed=0)
    source = sorted((data / "imagenette" / "val").rglob("*.JPEG"))[:12] if data else sorted(shapes.rglob("*.jpg"))
    names = [*PICTURES, *(f"{folder}/{i}.jpg" for folder in FOLDERS for i in range(13 if "imagenet" in folder else 2))]
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source[index % len(source)]) as picture:
            picture.convert("RGB").resize((96, 72)).save(root / name)
    _annotations(root, shapes)
    video(root / "street.mp4")
    shutil.copyfile(root / "street.mp4", root / "film.mp4")
    _classifiers(root)
    _detectors(root)
    _voc(root, shapes)
    (root / "output/results").mkdir()
    shutil.copyfile(REPOSITORY / "docs/results/bccd/compare.csv", root / "output/results/compare.csv")
    (root / "found.json").write_text("[]\n")
    (root / "cert.pem").write_text("")
    (root / "key.pem").write_text("")


def _annotations(root: Path, shapes: Path) -> None:
    """data/train.json, data/val.json and data/images, three classes; the same as the data set bccd."""
    bccd = root / "datasets" / "bccd"
    for folder in (root / "data/images", bccd / "annotations", *(bccd / split for split in ("train", "val", "test"))):
        folder.mkdir(parents=True)
    for split in ("train", "val"):
        found: dict[str, Any] = json.loads(annotation_file(shapes, "instances", f"{split}2017").read_text())
        keep = {category["id"] for category in found["categories"][:3]}
        found["categories"] = [each for each in found["categories"] if each["id"] in keep]
        found["annotations"] = [each for each in found["annotations"] if each["category_id"] in keep]
        (root / f"data/{split}.json").write_text(json.dumps(found))
        for name in (split, "test") if split == "val" else (split,):
            (bccd / "annotations" / f"{name}.json").write_text(json.dumps(found))
        for image in found["images"]:
            file = next(shapes.rglob(image["file_name"]))
            for folder in (root / "data/images", bccd / "train", bccd / "val", bccd / "test"):
                shutil.copyfile(file, folder / Path(image["file_name"]).name)


def _voc(root: Path, shapes: Path) -> None:
    """VOCdevkit/VOC2012 with one picture."""
    folder = root / "VOCdevkit/VOC2012"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    shutil.copyfile(next(shapes.rglob("*.jpg")), folder / "JPEGImages/one.jpg")
    (folder / "ImageSets/Main/train.txt").write_text("one\n")
    box = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (9, 9, 40, 50), strict=True)
    )
    (folder / "Annotations/one.xml").write_text(
        "<annotation><filename>one.jpg</filename><size><width>128</width><height>96</height><depth>3</depth></size>"
        f"<object><name>dog</name><bndbox>{box}</bndbox></object></annotation>"
    )


def _classifiers(root: Path) -> None:
    torch.manual_seed(0)
    dense = NortonResNet(CompressionSpec.dense(), 10).eval()
    torch.save(dense.state_dict(), root / "resnet50.pth")
    torch.save(NortonResNet(CompressionSpec.dense("resnet18"), 10).state_dict(), root / "resnet18.pth")
    save_file(dense.state_dict(), root / "resnet50_imagenette.safetensors")
    small = NortonResNet(CompressionSpec.preset("norton-78"), 10).eval()
    (root / "output").mkdir()
    for name in ("small.safetensors", "output/resnet50_norton-78.safetensors"):
        save_checkpoint(root / name, small)
    parts = ("pointwise", "vertical", "horizontal")  # of rank 1, so that the release's order of components is ours
    state = {
        name.replace(".conv2.", ".conv2.feature.") if any(part in name for part in parts) else name: tensor
        for name, tensor in small.state_dict().items()
    }
    torch.save({"state_dict": state}, root / "released_norton.pt")


def _detectors(root: Path) -> None:
    """Dense and compressed ones of both stacks, in every form and under every name that a page has for them."""
    for classes, config, keys, names in (
        (80, "dense_faster_rcnn", [], ("output/dense_faster_rcnn/model_final.pth", "dense.pth")),
        (80, "norton_faster_rcnn", [], ("output/norton_faster_rcnn/model_final.pth",)),
        (5, "demo_faster_rcnn", [], ("output/demo/norton/model_final.pth",)),
        (5, "demo_faster_rcnn", ["MODEL.NORTON.PRESET", "dense"], ("output/demo/dense/model_final.pth",)),
        (3, "bccd_dense_faster_rcnn", [], ("output/bccd_dense_faster_rcnn/model_final.pth",)),
        (
            *(3, "bccd_norton_faster_rcnn", []),
            ("output/bccd_norton_faster_rcnn/model_final.pth", "model_final.pth", "output/mine/model_final.pth"),
        ),
    ):
        always = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", str(classes)]
        model = build_detector(load_config(f"{config}.yaml", [*always, *keys]))
        for name in names:
            folder = (root / name).parent
            folder.mkdir(parents=True, exist_ok=True)
            NortonCheckpointer(model, str(folder)).save(Path(name).stem)
            (folder / "last_checkpoint").unlink()
        if config == "bccd_norton_faster_rcnn":
            save_whole(root / "output/bccd_whole.safetensors", model)
    (root / "output/demo/shapes").symlink_to(root / "shapes")
    (root / "output/norton_faster_rcnn/inference").mkdir()
    (root / "output/norton_faster_rcnn/inference/coco_instances_results.json").write_text("[]\n")
    small = fasterrcnn_norton_resnet50_fpn(spec="norton-78", min_size=96, max_size=128).eval()
    save_detector(root / "detector.safetensors", small)
    dense = fasterrcnn_norton_resnet50_fpn(spec="dense").eval()
    for name in ("checkpoint.pth", "fasterrcnn.pth"):
        torch.save({"model": dense.state_dict()}, root / name)
    export(small, root / "detector.xml")
    for name in ("norton", "dense"):
        for suffix in (".xml", ".bin"):
            shutil.copyfile(root / f"detector{suffix}", root / f"{name}{suffix}")

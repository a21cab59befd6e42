"""Exported files give what PyTorch gives, for every picture size, with nothing found too; bad input is one line."""

import builtins
import json

import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from norton_det.compression.detector import compress_detector
from norton_det.data.decode import read_image
from norton_det.deploy import DeployInfo, Detections, Predictor, export
from norton_det.deploy.native import NativePredictor
from norton_det.models.complexity import count_complexity
from norton_det.models.spec import CompressionSpec
from norton_det.models.stacks import stack_of
from norton_det.utils.errors import InputError

for _module in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(_module)

SIZES = {"min_size": 96, "max_size": 160}


def same(found: Detections, expected: Detections, pixels: float = 0.02) -> None:
    assert len(found) == len(expected)
    order = []  # rounding may swap two of almost the same score
    for box, label in zip(expected.boxes, expected.labels, strict=True):
        distance = np.abs(found.boxes - box).max(1) + 1e4 * (found.labels != label)
        order.append(int(distance.argmin()))
    assert sorted(order) == list(range(len(found)))
    found = Detections(*(None if part is None else part[order] for part in vars(found).values()))
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=pixels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=5e-4)  # weights here amplify rounding
    assert (found.labels == expected.labels).all()
    for one, other in ((found.masks, expected.masks), (found.keypoints, expected.keypoints)):
        assert (one is None) == (other is None)
    if found.masks is not None:
        assert (found.masks != expected.masks).mean() < 1e-3
    if found.keypoints is not None:
        np.testing.assert_allclose(found.keypoints[..., 2], expected.keypoints[..., 2], atol=2e-3, rtol=2e-3)
        moved = np.abs(found.keypoints[..., :2] - expected.keypoints[..., :2]).max(-1)
        assert np.median(moved) < 0.05  # a flat heat map of random weights may have two peaks


def native(detector: torch.nn.Module, picture: np.ndarray) -> Detections:
    """The detector's own pre- and post-processing."""
    pixels = torch.from_numpy(picture.transpose(2, 0, 1).copy()).float()
    with torch.inference_mode():
        if stack_of(detector).name == "torchvision":
            found = detector([pixels / 255])[0]
            points = found.get("keypoints")
            if points is not None:
                points = torch.cat([points[..., :2], found["keypoints_scores"][..., None]], 2).numpy()
            masks = found["masks"][:, 0].numpy() >= 0.5 if "masks" in found else None
            return Detections(found["boxes"].numpy(), found["scores"].numpy(), found["labels"].numpy(), masks, points)
        from detectron2.data.transforms import ResizeShortestEdge

        resized = ResizeShortestEdge([96, 96], 160).get_transform(picture).apply_image(picture)
        image = torch.from_numpy(resized.transpose(2, 0, 1).copy()).float()
        given = {"image": image, "height": picture.shape[0], "width": picture.shape[1]}
        found = detector([given])[0]["instances"]
        extra = [found.get(name).numpy() if found.has(name) else None for name in ("pred_masks", "pred_keypoints")]
        boxes, scores, labels = found.pred_boxes.tensor, found.scores, found.pred_classes
        return Detections(boxes.numpy(), scores.numpy(), labels.numpy(), *extra)


def test_predictor_in_pytorch_does_what_the_detector_does(detector, picture):
    found = Predictor(detector, **SIZES)(picture)
    assert len(found) > 3
    same(found, native(detector, picture))


@pytest.fixture(scope="module")
def pictures(request, picture) -> list[np.ndarray]:
    """Three photographs of COCO where they are at hand, else made-up ones; of several shapes."""
    try:
        folder = request.getfixturevalue("shared")
    except pytest.skip.Exception:
        return [picture, picture[:, :70], np.ascontiguousarray(picture.transpose(1, 0, 2))]
    files = sorted((folder / "data" / "coco-mini" / "val2017").glob("*.jpg"))[:3]
    return [read_image(file) for file in files]


def test_files(detector, pictures, tmp_path):
    """ONNX Runtime and OpenVINO, at sizes that were not traced."""
    plain = Predictor(detector, **SIZES)
    stack = stack_of(detector)
    names = tuple(f"class {number}" for number in range(stack.num_classes(detector)))
    for name in ("small.onnx", "small.xml"):
        info = export(detector, tmp_path / name, classes=names, **SIZES)
        predictor = Predictor(tmp_path / name, threads=1)
        assert predictor.info == info and info.labels.classes == names and info.min_size == 96
        expected = [plain(image) for image in pictures]
        assert len({len(each) for each in expected}) > 1  # none of them may be a constant of the trace
        for image, each in zip(pictures, expected, strict=True):
            same(predictor(image), each, 0.05)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.bin", "small.onnx", "small.xml"]


def test_weights_that_are_not_of_the_file_are_refused(faster, tmp_path):
    """A changed bit, or what a kill between the two files leaves: OpenVINO would run it."""
    export(faster, tmp_path / "a.xml", **SIZES)
    weights = tmp_path / "a.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.bin: sha256: expected \w{12}\.\.\. as a\.xml says; export it again"):
        Predictor(tmp_path / "a.xml", threads=1)


@pytest.mark.parametrize("name", ["none.onnx", "none.xml"])
def test_nothing_found(detector, picture, tmp_path, name):
    strict = copy_with_threshold(detector, 1.0)
    export(strict, tmp_path / name, **SIZES)
    found = Predictor(tmp_path / name, threads=1)(picture)
    assert len(found) == 0 and found.boxes.shape == (0, 4)
    if found.masks is not None:
        assert found.masks.shape == (0, *picture.shape[:2])


def copy_with_threshold(detector: torch.nn.Module, score: float) -> torch.nn.Module:
    import copy

    model = copy.deepcopy(detector)
    if stack_of(model).name == "torchvision":
        model.roi_heads.score_thresh = score
    else:
        model.roi_heads.box_predictor.test_score_thresh = score
    return model


def test_compressed_detectors(faster, picture, tmp_path):
    spec = CompressionSpec.parse(2, "[0.]+[0.5]*19")
    small = compress_detector(faster, spec, neck_rank=2, box_head_rank=32).model
    export(small, tmp_path / "small.xml", **SIZES)
    same(Predictor(tmp_path / "small.xml", threads=1)(picture), native(small, picture))


def test_int8_and_bf16(faster, picture, tmp_path):
    pytest.importorskip("nncf")
    plain = Predictor(faster, **SIZES)
    for precision, given in (("bf16", None), ("int8", [picture, picture[::-1].copy()])):
        info = export(faster, tmp_path / "low.xml", precision=precision, calibration=given, **SIZES)
        predictor = Predictor(tmp_path / "low.xml", threads=1)
        assert info.precision == predictor.info.precision == precision
        expected, found = (each.finish(each.run(each.prepare(picture)), 90, 130) for each in (plain, predictor))
        assert len(found) and (precision == "int8" or abs(found.scores.max() - expected.scores.max()) < 0.1)
    full = Predictor(tmp_path / "low.xml", precision="f32", threads=1)(picture)
    assert len(full)
    weights = (tmp_path / "low.bin").stat().st_size
    export(faster, tmp_path / "low.xml", **SIZES)
    assert weights < 0.4 * (tmp_path / "low.bin").stat().st_size


def test_colours(faster, picture):
    bgr = np.ascontiguousarray(picture[:, :, ::-1])
    same(Predictor(faster, color="BGR", **SIZES)(bgr), Predictor(faster, **SIZES)(picture), 1e-3)


def test_bf16_in_pytorch(faster, picture):
    low, full = (Predictor(faster, precision=precision, **SIZES)(picture) for precision in ("bf16", "f32"))
    assert len(low) and abs(low.scores[0] - full.scores[0]) < 0.05


def test_detections(faster, picture):
    found = Predictor(faster, **SIZES)(picture)
    half = found.above(float(np.median(found.scores)))
    assert 0 < len(half) < len(found) and (half.scores >= np.median(found.scores)).all()
    pytest.importorskip("detectron2")
    instances = found.to_instances(90, 130)
    assert instances.image_size == (90, 130) and len(instances) == len(found) and instances.has("pred_classes")


def test_sizes_default_to_the_detectors(faster):
    assert isinstance(faster.transform, GeneralizedRCNNTransform)
    counted = count_complexity(faster, (3, 800, 800))
    assert Predictor(faster).info == DeployInfo(
        "torchvision",
        ("boxes", "scores", "labels"),
        "RGB",
        96,
        160,
        num_classes=90,
        proposals=30,
        macs=counted.macs,
        params=counted.params,
    )


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"path": "x.pt"}, r"x.pt: expected a name ending in .onnx or .xml, got '.pt'"),
        ({"path": "x.onnx", "precision": "bf16"}, "precision: expected f32 for .onnx, got 'bf16'"),
        ({"path": "x.xml", "precision": "fp4"}, "precision: expected f32, bf16, int8 for .xml"),
        ({"path": "x.xml", "precision": "int8"}, "calibration: expected pictures"),
        ({"path": "x.xml", "calibration": [np.zeros((9, 9, 3), np.uint8)]}, "calibration: expected pictures"),
        ({"path": "x.xml", "min_size": -1}, "min_size: expected 0 to max_size"),
    ],
)
def test_export_refuses(faster, tmp_path, options, pattern):
    path = tmp_path / options.pop("path")
    with pytest.raises(InputError, match=pattern):
        export(faster, path, **options)
    assert not list(tmp_path.iterdir())


def test_training_mode_is_refused(faster, tmp_path):
    import copy

    model = copy.deepcopy(faster).train()
    for use in (lambda: export(model, tmp_path / "x.onnx"), lambda: Predictor(model)):
        with pytest.raises(InputError, match="eval mode"):
            use()
    assert model.training and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "module"), [("x.onnx", "onnx"), ("x.xml", "openvino")])
def test_a_missing_engine_says_how_to_get_it(faster, tmp_path, monkeypatch, name, module):
    real = builtins.__import__
    monkeypatch.setitem(__import__("sys").modules, module, None)
    assert builtins.__import__ is real
    with pytest.raises(InputError, match=rf"expected {module} to be installed, found none; run pip install {module} "):
        export(faster, tmp_path / name)


def test_predictor_refuses(faster, picture, tmp_path):
    with pytest.raises(InputError, match="expected an exported detector"):
        Predictor(tmp_path / "none.xml")
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(InputError, match=r"expected an ending .onnx or .xml, got '.txt'"):
        Predictor(tmp_path / "other.txt")
    for name in ("damaged.onnx", "damaged.xml"):
        (tmp_path / name).write_bytes(b"x" * 100)
        (tmp_path / "damaged.bin").write_bytes(b"x")
        with pytest.raises(InputError, match="expected an intact"):
            Predictor(tmp_path / name)
    predictor = Predictor(faster, **SIZES)
    for image in (picture[..., 0], picture.astype(np.float32), picture[:0], "x.jpg"):
        with pytest.raises(InputError, match="image: expected"):
            predictor(image)
    with pytest.raises(InputError, match="color: expected RGB or BGR"):
        Predictor(faster, color="rgb")
    with pytest.raises(InputError, match="sizes: no such option"):
        Predictor(faster, sizes=3)


def test_what_cannot_be_deployed_is_refused(faster, picture, tmp_path):
    import copy

    broken = copy.deepcopy(faster)
    broken.roi_heads.box_predictor.cls_score.weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"roi_heads.box_predictor.cls_score.weight: expected finite weights"):
        export(broken, tmp_path / "x.xml")
    fixed = copy.deepcopy(faster)
    fixed.transform.fixed_size = (64, 64)
    with pytest.raises(InputError, match="fixed_size"):
        Predictor(fixed)
    with pytest.raises(InputError, match="precision: expected f32 or bf16 in PyTorch, got f16"):
        Predictor(faster, precision="f16")
    (tmp_path / "b.bin").mkdir()
    with pytest.raises(InputError, match=r"b.bin: expected a file to write, got a folder"):
        export(faster, tmp_path / "b.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["b.bin"]


def test_no_resizing(detector, picture):
    """``INPUT.MIN_SIZE_TEST 0`` of Detectron2, in the deploy form and eagerly."""
    sizes = {"min_size": 0, "max_size": 160}
    predictor = Predictor(detector, **sizes)
    assert predictor.prepare(picture).shape == (1, 3, *picture.shape[:2])
    expected = NativePredictor(detector, **sizes)(picture)
    assert len(expected) > 3
    same(predictor(picture), expected)


def test_a_picture_that_is_too_long(detector):
    with pytest.raises(InputError, match="expected a short side that is left at a long one of 160, got 2000x1; crop"):
        Predictor(detector, **SIZES)(np.zeros((1, 2000, 3), np.uint8))


@pytest.mark.parametrize("threads", [0, -1, "a", True])
def test_threads(tmp_path, threads):
    with pytest.raises(InputError, match="threads: expected 1 or more"):
        Predictor(tmp_path / "x.xml", threads=threads)


def test_a_file_of_another_tool(tmp_path):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Relu", ["image"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("image", "y")]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "relu.onnx"))
    with pytest.raises(InputError, match="got another ONNX file"):
        Predictor(tmp_path / "relu.onnx")


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"version": 3}, "version: expected 1 or 2, got 3"),
        ({"stack": "yolo"}, "stack: expected detectron2 or torchvision"),
        ({"min_size": 900}, "min_size: expected 0 to max_size"),
        ({"extra": 1}, "damaged"),
        ({"outputs": ["x"]}, "outputs: expected"),
    ],
)
def test_damaged_metadata(change, pattern):
    info = DeployInfo("torchvision", ("boxes", "scores", "labels"), "RGB", 96, 160)
    assert DeployInfo.from_json(info.to_json(), "f") == info
    with pytest.raises(InputError, match=pattern):
        DeployInfo.from_json(json.dumps(json.loads(info.to_json()) | change), "f")

"""tools/tradeoff.py: dense and compressed detectors evaluated, timed and drawn."""

import torch

from .shared import QUICK_TEST, subset


def test_tradeoff(call, half, tmp_path, monkeypatch, datasets):
    """Dense, one case and one trained detector: evaluated, timed, drawn; a second run takes up what is there."""
    monkeypatch.chdir(tmp_path)
    few = subset(datasets / "bccd" / "annotations" / "test.json", tmp_path / "few.json", 2)
    from norton_det.d2.build import build_detector, load_config
    from norton_det.data.register import register_coco_folder

    register_coco_folder("few_tradeoff", few, datasets / "bccd" / "test")
    opts = [*map(str, QUICK_TEST), "INPUT.MIN_SIZE_TEST", "96", "DATASETS.TEST", "('few_tradeoff',)"]
    detector = build_detector(load_config("bccd_dense_faster_rcnn.yaml", [*opts, "MODEL.WEIGHTS", ""]))
    torch.save({"model": detector.state_dict()}, "dense.pth")
    words = ["--config", "bccd_dense_faster_rcnn.yaml", "--weights", "dense.pth", "--images", 3, "--rounds", 1]
    words += ["--calibrate", datasets / "bccd" / "val", "--case", "norton-78,box=16", "--form", "deploy"]
    words += ["--size", 96, 96, "--output", "out", "--trained", "same again=dense.pth"]
    status, out, err = call("tools/tradeoff.py", *words, *opts)
    assert status == 0, err
    rows = (tmp_path / "out" / "tradeoff.csv").read_text().splitlines()
    assert [row.split(",AP")[0].split(",")[0].strip('"') for row in rows] == [
        "case",
        "dense",
        "same again",
        "norton-78",
    ]
    assert (tmp_path / "out" / "tradeoff.png").stat().st_size > 5000 and "96x96, median of 1" in out
    written = (tmp_path / "out" / "norton-78_box16.safetensors").stat().st_mtime_ns
    status, _, err = call("tools/tradeoff.py", *words, *opts)
    assert status == 0, err
    assert (tmp_path / "out" / "norton-78_box16.safetensors").stat().st_mtime_ns == written

"""tools/compare.py: detectors trained with several seeds."""

import csv

from .shared import command, one_error


def test_compare(tmp_path):
    """Two detectors trained with two seeds, one of them loaded too; run again, nothing is trained again."""
    from norton_det.data import generate_dataset

    generate_dataset(tmp_path / "data" / "norton_shapes", train=4, val=2, height=96, width=128)
    output = tmp_path / "compare"
    keys = {"INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": 64, "SOLVER.MAX_ITER": 1, "SOLVER.IMS_PER_BATCH": 1}
    keys |= {"MODEL.RPN.POST_NMS_TOPK_TEST": 20, "MODEL.DEVICE": "cpu"}
    configs = [f"quick_schedules/{name}_faster_rcnn_instant_test.yaml" for name in ("dense", "norton")]
    words = [word for config in configs for word in ("--config", config)]
    words += ["--seeds", 1, "--size", 64, 64, "--output", output]
    opts = [word for pair in keys.items() for word in pair]
    done = command("tools/compare.py", *words, *opts, datasets=tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "| dense_faster_rcnn_instant_test | 1 |" in done.stdout and "mean ± standard deviation" in done.stdout
    last = output / "norton_faster_rcnn_instant_test_1" / "model_final.pth"
    changed = last.stat().st_mtime_ns
    done = command(
        "tools/compare.py", *words, "--load", f"again={last}", *opts, datasets=tmp_path / "data"
    )  # --load makes a row more
    assert done.returncode == 0 and last.stat().st_mtime_ns == changed, done.stderr
    with (output / "compare.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    names = ["again", *(f"{name}_faster_rcnn_instant_test" for name in ("norton", "dense"))]
    assert sorted(rows) == sorted(names)
    one, two, dense = (rows[name] for name in names)
    assert (one["AP"], one["macs"], one["minutes"]) == (two["AP"], two["macs"], "")
    assert int(two["macs"]) < int(dense["macs"]) and (output / "compare.png").stat().st_size > 3000
    done = command("tools/compare.py", *words, "--load", "none.pth", *opts, datasets=tmp_path / "data")
    one_error(done.returncode, done.stderr, "--load: expected NAME=FILE of another name than the configs, got 'none")
    done = command("tools/compare.py", *words, *opts, "SOLVER.WEIGHT_DECAY", 0.1, datasets=tmp_path / "data")
    one_error(done.returncode, done.stderr, "expected the settings of its run, got others; use --output")

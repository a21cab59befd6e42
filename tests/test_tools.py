"""The commands as a user types them: help, real input, bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = sorted([*REPOSITORY.glob("tools/*.py"), *REPOSITORY.glob("datasets/*.py")])
SMALL = (  # a real run, small enough to wait for
    "INPUT.MIN_SIZE_TRAIN (128,) INPUT.MAX_SIZE_TRAIN 200 INPUT.MIN_SIZE_TEST 128 INPUT.MAX_SIZE_TEST 200 "
    "MODEL.RPN.POST_NMS_TOPK_TRAIN 50 MODEL.RPN.POST_NMS_TOPK_TEST 30 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 "
    "TEST.DETECTIONS_PER_IMAGE 10 SOLVER.IMS_PER_BATCH 1 SOLVER.STEPS () SOLVER.WARMUP_ITERS 1 "
    "SOLVER.CHECKPOINT_PERIOD 1 DATALOADER.NUM_WORKERS 0"
).split()


def command(tool: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | environment
    words = [sys.executable, str(REPOSITORY / tool), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, env=env, timeout=600)


def error_line(ran: subprocess.CompletedProcess) -> str:
    """The one line that bad input gets."""
    lines = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert ran.returncode == 2, ran.stderr[-2000:]
    assert len(lines) == 1 and "Traceback" not in ran.stderr, ran.stderr[-2000:]
    return lines[0]


@pytest.mark.parametrize("tool", [path for path in TOOLS if path.name != "setup_env.py"], ids=lambda path: path.name)
def test_help_shows_examples(tool: Path) -> None:
    ran = command(str(tool.relative_to(REPOSITORY)), "--help")
    assert ran.returncode == 0 and "examples:" in ran.stdout and tool.name in ran.stdout.split("examples:")[1]
    assert os.access(tool, os.X_OK)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ResNet-50 in half precision, 10 classes."""
    torch.manual_seed(0)
    state = torchvision.models.resnet50(weights=None, num_classes=10).half().state_dict()
    file = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    save_file(state, str(file))
    return file


def test_compress_writes_a_checkpoint_and_a_report(weights: Path, tmp_path: Path) -> None:
    from norton_det import load_checkpoint

    out, report = tmp_path / "new" / "small.safetensors", tmp_path / "report.json"
    ran = command("tools/compress.py", "--weights", weights, "--preset", "norton-78", "--output", out, "--json", report)
    assert ran.returncode == 0, ran.stderr
    assert "layer4.2.conv2" in ran.stdout and "params 23.53 -> 3.86 M" in ran.stdout
    assert "decompose" in ran.stderr  # the progress bar
    fields = json.loads(report.read_text())
    assert fields["macs"] == [4087136256, 897571808]  # the published 899,619,808 with 10 classes instead of 1000
    model = load_checkpoint(out)
    assert model.spec.name == "norton-78" and model.num_classes == 10
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    assert "expected dense weights" in error_line(
        command("tools/compress.py", "--weights", out, "--preset", "norton-64", "--output", tmp_path / "x.safetensors")
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "norton-79"], ["preset", "norton-78", "norton-79"]),
        (["--rank", "10"], ["rank", "1 to 9", "10"]),
        (["--rank", "0"], ["rank", "1 to 9", "0"]),
        (["--ratios", "[0.]*100"], ["expected 20", "100", "ratios[:20]"]),
        (["--ratios", "[0.]+[1.]*19"], ["ratios[1]", "< 1"]),
        (["--ratios", "[0.]+[0.999]*19"], ["leaves none"]),
        (["--ratios", "__import__('os')"], ["ratios", "expected a list"]),
        (["--preset", "norton-78", "--criterion", "magic"], ["criterion", "pabs", "magic"]),
        ([], ["--preset norton-78"]),
    ],
)
def test_compress_refuses_bad_flags(weights: Path, tmp_path: Path, flags: list[str], words: list[str]) -> None:
    out = tmp_path / "out" / "x.safetensors"
    line = error_line(command("tools/compress.py", "--weights", weights, "--output", out, *flags))
    assert all(word in line for word in words), line
    assert not out.parent.exists()


def test_compress_refuses_bad_files(weights: Path, tmp_path: Path) -> None:
    truncated, other = tmp_path / "truncated.safetensors", tmp_path / "resnet18.pth"
    truncated.write_bytes(weights.read_bytes()[:1_000_000])
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), other)
    for file, word in ((tmp_path / "none.pth", "no such file"), (truncated, "damaged"), (other, "ResNet-50")):
        line = error_line(
            command(
                "tools/compress.py", "--weights", file, "--preset", "norton-78", "--output", tmp_path / "o.safetensors"
            )
        )
        assert str(file) in line and word in line, line
    assert not (tmp_path / "o.safetensors").exists()


def test_train_net_says_where_it_looked_for_coco(tmp_path: Path) -> None:
    ran = command("tools/train_net.py", "--config", "norton_faster_rcnn.yaml", DETECTRON2_DATASETS=str(tmp_path))
    assert str(tmp_path / "coco") in error_line(ran)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["MODEL.NORTON.PRESETS", "norton-64"], ["MODEL.NORTON.PRESETS"]),
        (["MODEL.NORTON.PRESET"], ["pairs"]),
        (["SOLVER.MAX_ITER", "many"], ["SOLVER.MAX_ITER"]),
    ],
)
def test_train_net_refuses_bad_options(options: list[str], words: list[str]) -> None:
    line = error_line(command("tools/train_net.py", "--config", "norton_faster_rcnn.yaml", *options))
    assert all(word in line for word in words), line


def test_benchmark_prints_the_ratio(tmp_path: Path) -> None:
    report = tmp_path / "speed.json"
    ran = command(
        "tools/benchmark.py", "--config", "norton_faster_rcnn.yaml", "--size", 64, 64, "--rounds", 2, "--json", report
    )
    assert ran.returncode == 0, ran.stderr
    rows = {row["model"]: row for row in json.loads(report.read_text())["rows"]}
    assert rows["dense"]["ratio"] == 1 and rows["norton, fused"]["ms"] > 0
    assert rows["norton"]["params"] < rows["dense"]["params"]


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DETECTRON2_DATASETS with the real COCO and BCCD pictures, validation cut to a few."""
    root = tmp_path_factory.mktemp("datasets")
    for name, source, splits in (
        (
            "coco",
            "coco-mini",
            {"annotations/instances_val2017.json": 6, "annotations/person_keypoints_val2017.json": 6},
        ),
        ("bccd", "bccd", {"annotations/test.json": 6}),
    ):
        (root / name / "annotations").mkdir(parents=True)
        for path in (shared / "data" / source).iterdir():
            if path.is_dir() and path.name != "annotations":
                (root / name / path.name).symlink_to(path)
        for path in (shared / "data" / source / "annotations").glob("*.json"):
            content = json.loads(path.read_text())
            if count := splits.get(f"annotations/{path.name}"):
                with_people = {a["image_id"] for a in content["annotations"] if a.get("num_keypoints", 1)}
                content["images"] = [image for image in content["images"] if image["id"] in with_people][:count]
                kept = {image["id"] for image in content["images"]}
                content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
            (root / name / "annotations" / path.name).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("config", "task", "columns", "extra"),
    [
        ("norton_faster_rcnn.yaml", "bbox", "AR1 AR10 AR100", ""),
        ("norton_mask_rcnn.yaml", "segm", "AR1 AR10 AR100", ""),
        ("norton_keypoint_rcnn.yaml", "keypoints", "AR AR50 AR75", ""),
        (
            "norton-43_faster_rcnn.yaml",
            "bbox",
            "AR1 AR10 AR100",
            "DATASETS.TRAIN ('bccd_train',) DATASETS.TEST ('bccd_test',) MODEL.ROI_HEADS.NUM_CLASSES 3",
        ),
    ],
    ids=["faster", "mask", "keypoint", "bccd"],
)
def test_compress_train_resume_evaluate_on_photographs(
    folder: Path, real_weights_path: Path, tmp_path: Path, config: str, task: str, columns: str, extra: str
) -> None:
    options = [*SMALL, *extra.split(), "OUTPUT_DIR", tmp_path]

    def train_net(*words: object) -> subprocess.CompletedProcess:
        return command("tools/train_net.py", "--config", config, *words, DETECTRON2_DATASETS=str(folder))

    ran = train_net(*options, "MODEL.WEIGHTS", real_weights_path, "SOLVER.MAX_ITER", 1)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "Starting training from iteration 0" in ran.stdout
    ran = train_net("--resume", *options, "MODEL.WEIGHTS", real_weights_path, "SOLVER.MAX_ITER", 2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "Starting training from iteration 1" in ran.stdout
    results = tmp_path / "results.json"
    trained = tmp_path / "model_final.pth"
    ran = train_net("--eval-only", "--json", results, *options, "MODEL.WEIGHTS", trained)
    assert ran.returncode == 0, ran.stderr[-3000:]
    header = next(line for line in ran.stdout.splitlines() if line.startswith("task") and columns.split()[1] in line)
    assert header.split() == ["task", "AP", "AP50", "AP75", *columns.split()]
    metrics = next(iter(json.loads(results.read_text()).values()))[task]
    assert {"AP", "AP50", "AP75", *columns.split()} <= set(metrics)

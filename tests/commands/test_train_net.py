"""tools/train_net.py on real pictures: trained, gone on with, evaluated; what is refused."""

import json
import re

import pytest
import torch

from norton_det.checkpoint.load import load_checkpoint
from norton_det.checkpoint.opened import open_weights
from norton_det.checkpoint.save import save_checkpoint
from norton_det.compression.resnet import compress
from norton_det.models.spec import CompressionSpec

from ..recount import recount
from .shared import LIGHT, QUICK_TEST, command, subset

SMALL_RUN = [
    *("SOLVER.IMS_PER_BATCH", 1, "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", 0, "SEED", 1),
    *("INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", 128, "TEST.DETECTIONS_PER_IMAGE", 10),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *QUICK_TEST,
]


BOXES = ["AP", "AP50", "AP75", "AR1", "AR10", "AR100"]


COLUMNS = {
    "faster": {"bbox": BOXES},
    "mask": {"bbox": BOXES, "segm": BOXES},
    "keypoint": {"bbox": BOXES, "keypoints": ["AP", "AP50", "AP75", "AR", "AR50", "AR75"]},
}


def table(stdout: str) -> list[list[str]]:
    """The last lines of the tool, from the data set's name on."""
    lines = stdout.splitlines()
    return [line.split() for line in lines[max(i for i, line in enumerate(lines) if line == "few") :]]


@pytest.mark.parametrize("task", COLUMNS)
def test_train_on_real_pictures(datasets, real_weights_path, tmp_path, task):
    """Real weights, compressed on the way, trained and evaluated on COCO; then evaluated from the file alone."""
    pytest.importorskip("detectron2")
    kind = "person_keypoints" if task == "keypoint" else "instances"
    few = subset(datasets / "coco" / "annotations" / f"{kind}_val2017.json", tmp_path / "few.json", 3)
    config = ["--config", f"norton_{task}_rcnn.yaml", "--register", f"few={few}:{datasets / 'coco' / 'val2017'}"]
    common = [*SMALL_RUN, "DATASETS.TEST", "('few',)", "OUTPUT_DIR", tmp_path / "out"]
    start = ["MODEL.WEIGHTS", real_weights_path, "SOLVER.MAX_ITER"]
    results, last = tmp_path / "results.json", tmp_path / "out" / "model_final.pth"

    done = command("tools/train_net.py", *config, "--json", results, *common, *start, 1, datasets=datasets)
    assert done.returncode == 0, done.stderr[-3000:]
    compressed = load_checkpoint(tmp_path / "out" / "start_norton-78.safetensors")
    assert compressed.spec == CompressionSpec.preset("norton-78") and compressed.num_classes == 10
    metrics = json.loads(results.read_text())["few"]
    rows = table(done.stdout)
    assert rows[0] == ["few"]
    for name, columns in COLUMNS[task].items():
        truth = recount(few, tmp_path / "out" / "inference" / "coco_instances_results.json", name)
        assert {column: metrics[name][column] for column in columns} == pytest.approx(truth)
        assert [name, *(f"{metrics[name][column]:.2f}" for column in columns)] in rows
        assert ["task", *columns] in rows
    first = torch.load(last, weights_only=True)

    if task == "faster":  # go on, without repeating how far
        words = ["--resume", "--json", results, *common, *start, 2, "SOLVER.CHECKPOINT_PERIOD", 1]
        done = command("tools/train_net.py", *config, *words, datasets=datasets)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Starting training from iteration 1" in done.stdout
        metrics, second = json.loads(results.read_text())["few"], torch.load(last, weights_only=True)
        assert (first["iteration"], second["iteration"]) == (0, 1)
        frozen, trained = "backbone.bottom_up.layer1.0.conv1.weight", "backbone.bottom_up.layer4.0.conv3.weight"
        assert torch.equal(first["model"][frozen], second["model"][frozen])
        assert not torch.equal(first["model"][trained], second["model"][trained])

    again = tmp_path / "again.json"
    done = command(
        "tools/train_net.py", *config, "--eval-only", "--json", again, *common, "MODEL.WEIGHTS", last, datasets=datasets
    )
    assert done.returncode == 0, done.stderr[-3000:]
    evaluated = json.loads(again.read_text())["few"]
    for name, columns in COLUMNS[task].items():
        assert [evaluated[name][c] for c in columns] == pytest.approx([metrics[name][c] for c in columns])


def test_train_on_bccd(datasets, real_weights_path, tmp_path):
    """Three classes of one's own; a compressed classifier as the start."""
    pytest.importorskip("detectron2")
    state = {
        name: t.float() if t.is_floating_point() else t for name, t in open_weights(real_weights_path).state.items()
    }  # fmt: skip
    start = save_checkpoint(tmp_path / "small.safetensors", compress(state, CompressionSpec.parse(None, LIGHT)).model)
    few = subset(datasets / "bccd" / "annotations" / "val.json", tmp_path / "few.json", 3)
    words = ["--config", "norton_faster_rcnn.yaml", "--register", f"few={few}:{datasets / 'bccd' / 'val'}"]
    words += [*SMALL_RUN, "DATASETS.TRAIN", "('bccd_train',)", "DATASETS.TEST", "('few',)", "SOLVER.MAX_ITER", 2]
    words += ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.WEIGHTS", start, "OUTPUT_DIR", tmp_path / "out"]
    words += ["SOLVER.AMP.ENABLED", True]  # on a CPU too
    done = command("tools/train_net.py", *words, datasets=datasets)
    assert done.returncode == 0, done.stderr[-3000:]
    assert table(done.stdout)[1] == ["task", *BOXES] and "Platelets" in done.stdout
    assert open_weights(tmp_path / "out" / "model_final.pth").described.spec == CompressionSpec.parse(None, LIGHT)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ([], r"data set coco_2017_train: expected \S+coco\S+, found none; put COCO at \S+, set DETECTRON2_DATASETS"),
        (["--num-gpus", "2"], r"data set coco_2017_train: expected \S+coco\S+, found none"),
        (
            ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "MODEL.WEIGHTS", "none.pth"],
            "none.pth: expected weights .*, found no such file",
        ),
        (
            ["--eval-only", "DATASETS.TEST", "()", "MODEL.WEIGHTS", ""],
            "MODEL.WEIGHTS: expected a trained detector, got",
        ),
    ],
    ids=["no data", "no data for two", "no weights", "nothing to evaluate"],
)
def test_train_net_refuses(tmp_path, monkeypatch, words, pattern):
    pytest.importorskip("detectron2")
    monkeypatch.chdir(tmp_path)
    done = command("tools/train_net.py", "--config", "norton_faster_rcnn.yaml", *words, datasets=tmp_path / "nowhere")
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.splitlines()[-1]
    assert re.search("^error: .*" + pattern, last), last
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.pth")) and not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--config", "none.yaml"], "none.yaml: expected a config file"),
        (["--config", "norton_faster_rcnn.yaml", "SOLVER.MAX_ITER"], "expected pairs of KEY VALUE, got 1"),
        (["--config", "norton_faster_rcnn.yaml", "--register", "mine"], "--register: expected NAME=JSON:IMAGES, got"),
        (["--config", "norton_faster_rcnn.yaml", "--register", "a=b.json:c"], "b.json: expected COCO annotations"),
        (["--config", "norton_faster_rcnn.yaml", "DATASETS.TRAIN", "('mine',)"], "data set 'mine': expected a regist"),
    ],
)
def test_train_net_checks_first(words, pattern):
    pytest.importorskip("detectron2")
    from norton_det.commands.options.train_net import make_parser
    from norton_det.commands.train_net import configure
    from norton_det.utils.errors import InputError

    with pytest.raises(InputError, match=pattern) as caught:
        configure(make_parser().parse_args(words))
    assert "\n" not in str(caught.value)


def test_results_as_json(tmp_path, capsys):
    pytest.importorskip("detectron2")
    from norton_det.commands.train_net import report

    report({"few": {"bbox": {"AP": float("nan"), "AR1": 3.0}}}, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == {"few": {"bbox": {"AP": None, "AR1": 3.0}}}
    assert "nan" in capsys.readouterr().out

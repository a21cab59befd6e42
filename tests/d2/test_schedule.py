"""A schedule for the data at hand."""

import json
import logging
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from norton_det.commands.options.train_net import make_parser
from norton_det.commands.train_net import configure, tell_length
from norton_det.d2.config_files import is_inherited
from norton_det.d2.schedule import Pace, proposal, with_epochs
from norton_det.utils.configs import find_config
from norton_det.utils.errors import InputError


@pytest.fixture
def mine(tmp_path):
    """``mine(images)``: words that register and train on a data set of so many images, half of them with an object."""

    def make(images: int, flags: tuple[str, ...] = ()) -> list[str]:
        content = {
            "images": [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in range(1, images + 1)],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": n % 2}
                for n in range(1, images + 1)
            ],
        }
        (tmp_path / "ann.json").write_text(json.dumps(content))
        for n in range(1, images + 1):
            (tmp_path / f"{n}.jpg").touch()
        sets = ["DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "()", "MODEL.ROI_HEADS.NUM_CLASSES", "1"]
        opts = [*sets, "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
        start = ["--config", "norton_faster_rcnn.yaml", "--register", f"mine={tmp_path / 'ann.json'}:{tmp_path}"]
        return [*start, *flags, *opts]

    return make


def parsed(words):
    return make_parser().parse_args(words)


def test_epochs(mine):
    args = parsed([*mine(120, ("--epochs", "50")), "SOLVER.IMS_PER_BATCH", "4"])
    solver = configure(args).SOLVER
    # 60 of the 120 images have an object that is no crowd; steps keep the share that COCO's have
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (750, (462, 635), 75)
    assert solver.CHECKPOINT_PERIOD == 150 and solver.BASE_LR == 0.02


def test_epochs_leave_what_is_given(config):
    cfg = config("norton_faster_rcnn.yaml", **{"TEST.EVAL_PERIOD": 7, "SOLVER.WARMUP_ITERS": 3})
    scheduled = with_epochs(cfg, 0.5, 160, ["SOLVER.STEPS", "SOLVER.WARMUP_ITERS"])
    assert scheduled.is_frozen() and scheduled.SOLVER.MAX_ITER == 5
    assert (scheduled.SOLVER.STEPS, scheduled.SOLVER.WARMUP_ITERS) == (cfg.SOLVER.STEPS, 3)
    assert (scheduled.TEST.EVAL_PERIOD, scheduled.SOLVER.CHECKPOINT_PERIOD) == (10, 10)  # an epoch
    for epochs, images, given, pattern in (
        (0, 160, [], "--epochs: expected more than 0, got 0; "),
        (float("nan"), 160, [], "--epochs: expected more than 0, got nan"),
        (1, 160, ["SOLVER.MAX_ITER"], "--epochs: expected without SOLVER.MAX_ITER, got both"),
        (1, 0, [], "expected images with objects, found none"),
    ):
        with pytest.raises(InputError, match=pattern):
            with_epochs(cfg, epochs, images, given)


def test_a_schedule_of_other_data_is_told(mine, caplog):
    caplog.set_level(logging.INFO, "norton_det")
    words = mine(120)
    args = parsed(words)
    pace = tell_length(configure(args), args)
    assert (
        "SOLVER.MAX_ITER 190554 is for the config's own data: 50814.4 epochs of these 60 images, in batches of 16"
        in (caplog.text)
    )
    assert "Proposed for these: --epochs 67, with SOLVER.IMS_PER_BATCH 4 1005 iterations" in caplog.text
    assert pace.proposed == (1005, 4)
    caplog.clear()
    for more in (["SOLVER.MAX_ITER", "500"], ["SOLVER.IMS_PER_BATCH", "16", "SOLVER.MAX_ITER", "9"]):
        args = parsed([*words, *more])
        assert tell_length(configure(args), args).proposed is None
    assert "Proposed" not in caplog.text


def test_where_a_schedule_comes_from(tmp_path):
    base, mine = find_config("norton_faster_rcnn.yaml"), tmp_path / "mine.yaml"
    mine.write_text(f"_BASE_: {base}\nDATASETS: {{TRAIN: ('mine',)}}\n")
    assert is_inherited(mine, []) and not is_inherited(mine, ["SOLVER.MAX_ITER"])
    assert not is_inherited(base, []) and is_inherited(base, ["DATASETS.TRAIN"])
    mine.write_text(f"_BASE_: {base}\nDATASETS: {{TRAIN: ('mine',)}}\nSOLVER: {{MAX_ITER: 9}}\n")
    assert not is_inherited(mine, []) and is_inherited(mine, ["DATASETS.TRAIN"])


@pytest.mark.parametrize(("images", "epochs"), [(3, 100), (60, 67), (205, 20), (117_266, 12)])
def test_proposals(config, images, epochs):
    assert proposal(config("norton_faster_rcnn.yaml"), images) == (epochs, 4)


def test_the_time_is_told_once(caplog):
    pace = Pace((1000, 4), 16)
    with EventStorage() as storage, caplog.at_level(logging.WARNING, "norton_det"):
        for iteration in range(12):
            storage.put_scalar("time", 100.0 if iteration < 2 else 20.0)
            pace.trainer = SimpleNamespace(iter=iteration, start_iter=0, max_iter=10_007, storage=storage)
            pace.after_step()
            storage.step()
    assert [record.getMessage() for record in caplog.records] == [
        "20.00 s an iteration: 10000 more take 2.31 days; the 1000 iterations proposed above would take about 83.3 min"
    ]

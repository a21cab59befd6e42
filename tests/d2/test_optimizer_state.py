"""A resumed run trains with the settings that its config, and its log, have."""

import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn

from norton_det.d2 import NortonTrainer
from norton_det.d2.optimizer_state import apply_settings, settings_of
from norton_det.data import generate_dataset, register_generated

LOGGER = "norton_det.d2.optimizer_state"


def solver(**keys):
    """An optimizer of a small network, and its schedule, of a config."""
    cfg = get_cfg()
    cfg.merge_from_list([word for key, value in keys.items() for word in (f"SOLVER.{key}", value)])
    optimizer = build_optimizer(cfg, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    return optimizer, build_lr_scheduler(cfg, optimizer)


def steps(optimizer, scheduler, count):
    """The rates that so many iterations are trained with."""
    rates = []
    for _ in range(count):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


BEFORE = {"BASE_LR": 0.01, "MAX_ITER": 10, "STEPS": (8,), "WARMUP_ITERS": 2}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"BASE_LR": 0.001}, "base learning rate 0.01 -> 0.001; learning rate of iteration 5 0.01 -> 0.001"),
        ({"STEPS": (3,)}, "learning rate of iteration 5 0.01 -> 0.001"),
        ({"STEPS": (3,), "GAMMA": 0.5}, "learning rate of iteration 5 0.01 -> 0.005"),
        ({"WARMUP_ITERS": 8}, "learning rate of iteration 5 0.01 -> "),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR"}, "learning rate of iteration 5 0.01 -> 0.005"),
        ({"MAX_ITER": 40}, ""),
        ({"MOMENTUM": 0.5, "NESTEROV": True}, "momentum 0.9 -> 0.5; nesterov False -> True"),
        ({"WEIGHT_DECAY": 0.3}, "weight decay 0.0001 -> 0.3"),
        ({"MAX_ITER": 5, "STEPS": ()}, ""),
    ],
)
def test_the_config_counts(changes, told, caplog):
    """The rate of each iteration, momentum and decay are those of a run that had the config from the start."""
    first = solver(**BEFORE)
    steps(*first, 5)
    resumed, whole = solver(**BEFORE | changes), solver(**BEFORE | changes)
    settings = settings_of(resumed[0])
    resumed[0].load_state_dict(first[0].state_dict())
    resumed[1].load_state_dict(first[1].state_dict())
    with caplog.at_level(logging.WARNING, LOGGER):
        apply_settings(*resumed, settings)
    assert told in caplog.text and bool(caplog.text) == bool(told)
    if changes.get("MAX_ITER") == 5:  # nothing is left to train
        return
    steps(*whole, 5)
    rates = [group["lr"] for group in whole[0].param_groups]
    assert [group["lr"] for group in resumed[0].param_groups] == rates
    assert settings_of(resumed[0]) == settings_of(whole[0])
    assert steps(*resumed, 4) == steps(*whole, 4)
    assert resumed[0].state and resumed[1].state_dict() == whole[1].state_dict()


def test_schedules_of_ones_own_keep_the_checkpoints_settings(caplog):
    first, other = (torch.optim.SGD(nn.Linear(2, 2).parameters(), rate) for rate in (0.1, 0.2))
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 5) for optimizer in (first, other)]
    settings = settings_of(other)
    other.load_state_dict(first.state_dict())
    with caplog.at_level(logging.WARNING, LOGGER):
        apply_settings(other, schedules[1], settings)
    assert "Resumed with what the checkpoint has, not the config: base learning rate 0.1 -> 0.2" in caplog.text
    assert other.param_groups[0]["lr"] == 0.1


def test_resumed_with_another_rate_and_batch(config, tmp_path, caplog):
    register_generated(generate_dataset(tmp_path / "norton_shapes", train=3, val=1, height=96, width=96, seed=3))
    keys = {
        "OUTPUT_DIR": tmp_path / "run",
        "DATASETS.TEST": (),
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.STEPS": (),
        "SOLVER.BASE_LR": 0.001,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 1,
        "SEED": 1,
    }

    def run(resume, **changes):
        cfg = config("quick_schedules/norton_faster_rcnn_instant_test.yaml", **keys | changes)
        trainer = NortonTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        rates = []
        trainer.run_step = lambda step=trainer.run_step: (
            rates.append({group["lr"] for group in trainer.optimizer.param_groups}),
            step(),
        )
        trainer.train()
        return rates

    assert run(False) == [{0.001}]
    changes = {"SOLVER.IMS_PER_BATCH": 1, "SOLVER.REFERENCE_IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 2, "SEED": 2}
    with caplog.at_level(logging.INFO, "norton_det"):
        assert run(True, **changes) == [{0.0005}]
    assert "Learning rate: 0.0005 for batches of 1 images" in caplog.text
    assert "base learning rate 0.001 -> 0.0005; learning rate of iteration 1 0.001 -> 0.0005" in caplog.text
    assert "SEED 2 is not used: the run goes on with 1 of its checkpoint" in caplog.text

"""The work of ``norton-det train``; ``options/train_net.py`` says what it is."""

import argparse
import json
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint.opened import reading_once
from ..d2.build import NORTON_BACKBONES, load_config, load_detector
from ..d2.config import info_from_config
from ..d2.config_checks import check_model
from ..d2.config_files import is_inherited
from ..d2.datasets import check_config_datasets
from ..d2.evaluation import class_rows, format_classes, format_rows, published_columns, without_nan
from ..d2.initial_weights import compress_weights, resume_weights
from ..d2.launch import launch
from ..d2.pooling import vectorize_pooling
from ..d2.schedule import (
    Pace,
    count_images,
    is_odd,
    tell_proposal,
    tell_schedule,
    with_epochs,
)
from ..d2.trainer import NortonTrainer
from ..d2.training_checks import check_training
from ..data.register import register_entries
from ..utils.configs import find_config
from ..utils.errors import InputError
from ..utils.files import hold_folder, require_writable, write_text


def configure(args: argparse.Namespace) -> CfgNode:
    """The config, once the data sets are registered and found."""
    register_entries(args.register)
    args.config_file = str(find_config(args.config_file))  # default_setup opens it
    partial = ["MODEL.PARTIAL_WEIGHTS", "True"] if args.partial else []
    cfg = load_config(args.config_file, [*partial, *args.opts])
    check_model(cfg)
    require_writable(str(Path(cfg.OUTPUT_DIR) / "log.txt"))
    if args.json:
        require_writable(args.json)
    if cfg.MODEL.BACKBONE.NAME in NORTON_BACKBONES:
        info_from_config(cfg)  # refuses a spec or a preprocessing that does not fit
    if not args.eval_only:
        check_training(cfg)
    if cfg.MODEL.DEVICE == "cpu" and torch.cuda.is_available() and args.num_gpus > 1:
        raise InputError("MODEL.DEVICE: expected cuda with --num-gpus, got cpu; hide the GPUs to use several CPUs")
    check_config_datasets(cfg, training=not args.eval_only)
    if args.epochs is not None and not args.eval_only:
        cfg = with_epochs(cfg, args.epochs, count_images(cfg), args.opts[::2])
    return cfg


def tell_length(cfg: CfgNode, args: argparse.Namespace) -> Pace:
    """Say how long the training is, and propose another length where that of other data is inherited.

    Returns:
        What tells the time that it takes, once that is known.
    """
    proposed = None
    if args.epochs is not None:
        tell_schedule(cfg, count_images(cfg))
    elif is_inherited(args.config_file, args.opts[::2]) and is_odd(cfg, images := count_images(cfg)):
        proposed = tell_proposal(cfg, images)
    return Pace(proposed, cfg.SOLVER.IMS_PER_BATCH)


def train(args: argparse.Namespace) -> None:
    """What each process of the run does."""
    with ExitStack() as start:
        start.enter_context(reading_once())
        cfg = configure(args)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="norton_det")
        default_setup(cfg, args)
        if args.eval_only:
            detector = vectorize_pooling(load_detector(cfg))
            start.close()
            results = NortonTrainer.test(cfg, detector)
        else:
            with hold_folder(cfg.OUTPUT_DIR, "this training") if comm.is_main_process() else nullcontext():
                pace = tell_length(cfg, args)
                resumed = resume_weights(cfg) if args.resume else None
                trainer = NortonTrainer(resumed or compress_weights(cfg))
                trainer.register_hooks([pace])
                trainer.resume_or_load(resume=args.resume)
                start.close()  # the files are in the detector now, and need no memory
                trainer.train()
            results = trainer.last_results()
    if comm.is_main_process() and results:
        report({cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results, args.json)


def report(results: dict[str, Any], path: str | None) -> None:
    """Print the columns of the published table for each data set; ``path`` gets all metrics."""
    for dataset, metrics in results.items():
        print(f"{dataset}\n{format_rows(published_columns(metrics))}\n{format_classes(class_rows(metrics))}".rstrip())
    if path:
        write_text(path, json.dumps(without_nan(results), indent=2, allow_nan=False) + "\n")


def main(args: argparse.Namespace) -> None:
    if args.num_gpus * args.num_machines > 1:
        configure(args)  # bad input is met here, in one line, and not by every process
    url = args.dist_url or default_argument_parser().get_default("dist_url")
    launch(train, args, args.num_gpus, args.num_machines, args.machine_rank, url)

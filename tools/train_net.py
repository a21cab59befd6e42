#!/usr/bin/env python3
"""Train or evaluate a Faster, Mask or Keypoint R-CNN with a NORTON-compressed backbone, with Detectron2's own flags.

Dense weights in MODEL.WEIGHTS are compressed first, to the spec of MODEL.NORTON, and kept in OUTPUT_DIR."""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from norton_det.cli import parser, run

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from norton_det.d2.config import find_config, info_from_config
from norton_det.d2.engine import NORTON_BACKBONES, load_config, load_detector
from norton_det.d2.evaluation import class_rows, format_classes, format_rows, published_columns, without_nan
from norton_det.d2.launch import launch
from norton_det.d2.loader import check_classes
from norton_det.d2.pooling import vectorize_pooling
from norton_det.d2.start import compress_weights, resume_weights
from norton_det.d2.trainer import NortonTrainer, check_training
from norton_det.data.register import check_datasets, register_entries
from norton_det.errors import InputError
from norton_det.files import atomic_path, hold_folder, require_writable

EXAMPLES = """
  tools/train_net.py --config norton_faster_rcnn.yaml
  tools/train_net.py --config norton_mask_rcnn.yaml --num-gpus 8 MODEL.NORTON.PRESET norton-64
  torchrun --nproc_per_node 8 tools/train_net.py --config norton_faster_rcnn.yaml    # or --nnodes for more machines
  tools/train_net.py --config norton_faster_rcnn.yaml --resume
  tools/train_net.py --config norton_faster_rcnn.yaml --eval-only \\
      MODEL.WEIGHTS output/norton_faster_rcnn/model_final.pth
  tools/train_net.py --config quick_schedules/norton_faster_rcnn_instant_test.yaml   # minutes, on generated data
  tools/train_net.py --config norton_faster_rcnn.yaml \\
      --register mine_train=ann/train.json:images --register mine_val=ann/val.json:images \\
      DATASETS.TRAIN "('mine_train',)" DATASETS.TEST "('mine_val',)" MODEL.ROI_HEADS.NUM_CLASSES 3
"""


def make_parser() -> argparse.ArgumentParser:
    own = parser(__doc__, EXAMPLES)
    own.add_argument("--config-file", "--config", required=True, metavar="FILE", help="a path, or a name in configs/")
    own.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    own.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and print AP and AR")
    own.add_argument(
        "--partial", action="store_true", help="what weights of a detector lack starts anew, what is too much is left"
    )
    own.add_argument(
        "--num-gpus", type=int, default=1, help="processes on this machine, one GPU each; without GPUs, on its CPUs"
    )
    own.add_argument("--num-machines", type=int, default=1, help="machines in all")
    own.add_argument("--machine-rank", type=int, default=0, help="number of this machine")
    own.add_argument("--dist-url", default=default_argument_parser().get_default("dist_url"), help="of machine 0")
    own.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="NAME=JSON:IMAGES",
        help="a data set in COCO format, to be used in DATASETS.TRAIN and DATASETS.TEST; may be repeated",
    )
    own.add_argument("--json", metavar="FILE", help="write the results of the evaluation there")
    own.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return own


def configure(args: argparse.Namespace) -> CfgNode:
    """The config, once the data sets are registered and found."""
    register_entries(args.register)
    args.config_file = str(find_config(args.config_file))  # default_setup opens it
    partial = ["MODEL.PARTIAL_WEIGHTS", "True"] if args.partial else []
    cfg = load_config(args.config_file, [*partial, *args.opts])
    require_writable(str(Path(cfg.OUTPUT_DIR) / "log.txt"))
    if args.json:
        require_writable(args.json)
    if cfg.MODEL.BACKBONE.NAME in NORTON_BACKBONES:
        info_from_config(cfg)  # refuses a spec or a preprocessing that does not fit
    check_training(cfg)
    if cfg.MODEL.DEVICE == "cpu" and torch.cuda.is_available() and args.num_gpus > 1:
        raise InputError("MODEL.DEVICE: expected cuda with --num-gpus, got cpu; hide the GPUs to use several CPUs")
    points = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0
    train = () if args.eval_only else cfg.DATASETS.TRAIN
    check_datasets(train, keypoints=points)
    check_datasets(cfg.DATASETS.TEST, masks=cfg.MODEL.MASK_ON, keypoints=points)
    check_classes(cfg, (*train, *cfg.DATASETS.TEST))
    return cfg


def main(args: argparse.Namespace) -> None:
    cfg = configure(args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="norton_det")
    default_setup(cfg, args)
    if args.eval_only:
        results = NortonTrainer.test(cfg, vectorize_pooling(load_detector(cfg)))
    else:
        with hold_folder(cfg.OUTPUT_DIR, "this training") if comm.is_main_process() else nullcontext():
            last = resume_weights(cfg) if args.resume else None
            trainer = NortonTrainer(last or compress_weights(cfg))
            trainer.resume_or_load(resume=args.resume)
            trainer.train()
        results = trainer.last_results()
    if comm.is_main_process() and results:
        report({cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results, args.json)


def report(results: dict[str, Any], path: str | None) -> None:
    """Print the columns of the published table for each data set; ``path`` gets all metrics."""
    for dataset, metrics in results.items():
        print(f"{dataset}\n{format_rows(published_columns(metrics))}\n{format_classes(class_rows(metrics))}".rstrip())
    if path:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(without_nan(results), indent=2, allow_nan=False) + "\n")


def launched(args: argparse.Namespace) -> None:
    if args.num_gpus * args.num_machines > 1:
        configure(args)  # bad input is met here, in one line, and not by every process
    launch(main, args, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)


if __name__ == "__main__":
    arguments = make_parser().parse_args()
    run(lambda: launched(arguments))

"""Train or evaluate a Faster, Mask or Keypoint R-CNN with a NORTON-compressed backbone, with Detectron2's own flags.

Dense weights in MODEL.WEIGHTS are compressed first, to the spec of MODEL.NORTON, and kept in OUTPUT_DIR."""

import argparse

from ..parser import command_parser

EXAMPLES = """
  norton-det train --config norton_faster_rcnn.yaml
  norton-det train --config norton_mask_rcnn.yaml --num-gpus 8 MODEL.NORTON.PRESET norton-64
  torchrun --nproc_per_node 8 -m norton_det train --config norton_faster_rcnn.yaml    # or --nnodes for more machines
  norton-det train --config norton_faster_rcnn.yaml --resume
  norton-det train --config norton_faster_rcnn.yaml --eval-only \\
      MODEL.WEIGHTS output/norton_faster_rcnn/model_final.pth
  norton-det train --config quick_schedules/norton_faster_rcnn_instant_test.yaml   # minutes, on generated data
  norton-det train --config norton_faster_rcnn.yaml \\
      --register mine_train=ann/train.json:images --register mine_val=ann/val.json:images --epochs 50 \\
      DATASETS.TRAIN "('mine_train',)" DATASETS.TEST "('mine_val',)" MODEL.ROI_HEADS.NUM_CLASSES 3
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--config-file", "--config", required=True, metavar="FILE", help="a path, or a name in configs/"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument(
        "--epochs",
        type=float,
        metavar="N",
        help="passes over the training images, in place of SOLVER.MAX_ITER; STEPS, warm-up and checkpoints follow",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and print AP and AR")
    parser.add_argument(
        "--partial", action="store_true", help="what weights of a detector lack starts anew, what is too much is left"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes on this machine, one GPU each; without GPUs, on its CPUs"
    )
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine")
    parser.add_argument("--dist-url", metavar="URL", help="of machine 0; by default this one, a port of your own")
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="NAME=JSON:IMAGES",
        help="a data set in COCO format, to be used in DATASETS.TRAIN and DATASETS.TEST; may be repeated",
    )
    parser.add_argument("--json", metavar="FILE", help="write the results of the evaluation there")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return parser

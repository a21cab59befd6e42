"""Time of compressing a ResNet-50's sixteen 3x3 convolutions, beside filter-by-filter and pair-by-pair loops.

Ours is measured in full: CP decompositions of all filters in one batch, then the distances of all pairs (PABS) and the
elimination order of every layer. The loops would take minutes, so a random sample of each layer is measured and
multiplied up to the layer's number of filters and pairs: TensorLy's parafac, one default call a filter, and
scipy.linalg.subspace_angles, three calls a pair (the loop's elimination order is not even counted). The error is
compared on the sampled filters with the best of three parafac starts (SVD and two random ones). All in float64 on the
CPU. Needs the packages tensorly and scipy."""

import argparse

from ..parser import command_parser

EXAMPLES = """
  norton-det benchmark-compression
  norton-det benchmark-compression --weights resnet50.safetensors --json compression.json
  norton-det benchmark-compression --rank 2 --filters 16 --threads 1
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--weights", metavar="FILE", help="of a dense ResNet, as norton-det compress takes them; by default random"
    )
    parser.add_argument("--rank", type=int, default=1, help="CP rank; 1 is norton-78's")
    parser.add_argument("--filters", type=int, default=8, help="sampled filters of each layer for the loop")
    parser.add_argument("--pairs", type=int, default=100, help="sampled pairs of each layer for the loop")
    parser.add_argument("--rounds", type=int, default=3, help="runs of ours, of which the median counts")
    parser.add_argument("--layers", type=int, default=16, help="only the first so many layers")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch; by default all cores")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of random weights")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    return parser

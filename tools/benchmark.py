#!/usr/bin/env python3
"""Latency and FPS of a NORTON detector beside its dense baseline, interleaved, as trained and in deploy form.

A frame is one image through the whole detector: normalisation, backbone, proposals, heads and NMS. Without weights
the detectors are random: backbone and neck cost the same, the number of detections does not."""

import argparse
import json
from pathlib import Path

from norton_det.cli import parser, run

# isort: split
import cv2
import torch

from norton_det.complexity import count_complexity
from norton_det.d2.engine import build_detector, load_config, load_detector
from norton_det.errors import InputError
from norton_det.files import atomic_path, require_file
from norton_det.fuse import fuse
from norton_det.timing import environment, measure

EXAMPLES = """
  tools/benchmark.py --config norton_faster_rcnn.yaml
  tools/benchmark.py --config norton_faster_rcnn.yaml --weights output/norton_faster_rcnn/model_final.pth \\
      --baseline-weights output/dense_faster_rcnn/model_final.pth --image street.jpg --json speed.json
"""


def make_parser() -> argparse.ArgumentParser:
    own = parser(__doc__, EXAMPLES)
    own.add_argument("--config-file", "--config", required=True, metavar="FILE", help="of the compressed detector")
    own.add_argument("--weights", default="", metavar="FILE", help="its trained weights")
    own.add_argument("--baseline", metavar="FILE", help="config to compare with; by default the same, dense")
    own.add_argument("--baseline-weights", default="", metavar="FILE", help="the baseline's trained weights")
    own.add_argument("--image", metavar="FILE", help="picture to use; by default noise")
    own.add_argument("--size", type=int, nargs=2, default=[800, 800], metavar=("H", "W"), help="of the network's input")
    own.add_argument("--rounds", type=int, default=10, help="measured frames of each")
    own.add_argument("--threads", type=int, help="CPU threads; by default all cores")
    own.add_argument("--json", metavar="FILE", help="write the figures there")
    own.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to both configs")
    return own


def load(config: str, weights: str, opts: list[str]) -> torch.nn.Module:
    cfg = load_config(config, [*opts, "MODEL.WEIGHTS", weights])
    return load_detector(cfg) if weights else build_detector(cfg).eval()


def frame(path: str | None, height: int, width: int) -> torch.Tensor:
    """(3, H, W) in 0..255."""
    if path is None:
        return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)).float()
    image = cv2.imread(str(require_file(path, "a picture")), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{path}: expected a picture, got a file that OpenCV cannot read; use JPEG or PNG")
    return torch.from_numpy(cv2.resize(image, (width, height))[:, :, ::-1].copy()).permute(2, 0, 1).float()


def main() -> None:
    args = make_parser().parse_args()
    if min(*args.size, args.rounds, args.threads or 1) < 1 or args.threads == 0:
        raise InputError("--size, --rounds, --threads: expected 1 or more, got less; choose such numbers")
    if args.threads:
        torch.set_num_threads(args.threads)
    dense_opts = [] if args.baseline else ["MODEL.NORTON.PRESET", "dense"]
    small = load(args.config_file, args.weights, args.opts)
    dense = load(args.baseline or args.config_file, args.baseline_weights, args.opts + dense_opts)
    models = {"dense": dense, "norton": small, "dense, fused": fuse(dense), "norton, fused": fuse(small)}
    device = small.device
    image = {"image": frame(args.image, *args.size)}
    calls = {name: (lambda model=model: model([image])) for name, model in models.items()}
    timings = measure(calls, rounds=args.rounds, device=device, progress=True)
    found = {"dense": count_complexity(dense, (3, *args.size)), "norton": count_complexity(small, (3, *args.size))}
    rows = []
    print(f"{'model':15} {'MACs G':>8} {'params M':>9} {'ms':>9} {'8 of 10 in':>17} {'FPS':>7} {'ratio':>7}")
    for name, timing in timings.items():
        complexity = found[name.split(",")[0]]
        low, high = timing.spread
        rows.append(
            {
                "model": name,
                "macs": complexity.macs,
                "params": complexity.params,
                "ms": 1e3 * timing.median,
                "fps": timing.fps,
                "ratio": timings["dense"].median / timing.median,
            }
        )
        print(
            f"{name:15} {complexity.macs / 1e9:8.2f} {complexity.params / 1e6:9.2f} {1e3 * timing.median:9.1f} "
            f"{1e3 * low:8.1f}-{1e3 * high:<8.1f} {timing.fps:7.2f} {rows[-1]['ratio']:6.2f}x"
        )
    where = environment(device)
    print(f"{args.size[0]}x{args.size[1]}, batch 1, median of {args.rounds} interleaved frames; {where}")
    if args.json:
        with atomic_path(Path(args.json)) as temporary:
            temporary.write_text(json.dumps({"environment": where, "size": args.size, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    run(main)

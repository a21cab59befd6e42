#!/usr/bin/env python3
"""The whole road on generated pictures (`make demo`): train a dense Faster R-CNN, compress it with NORTON, fine-tune,
evaluate both, time both side by side, and write a report with pictures. Two CPU cores, no network, no weights.

The detector is Detectron2's Faster R-CNN R50-FPN with a narrower neck and head (configs/quick_schedules/
demo_faster_rcnn.yaml): small enough to learn from random weights while you wait."""

import argparse
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from norton_det.commands.parser import command_parser, run

# isort: split
import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import ColorMode, Visualizer
from tqdm import tqdm

from norton_det.checkpoint.save import save_tensors
from norton_det.compression.resnet import compress_detector_state
from norton_det.d2.build import load_config, load_detector
from norton_det.d2.config import spec_from_config
from norton_det.d2.evaluation import published_columns
from norton_det.d2.trainer import NortonTrainer
from norton_det.data import generate_dataset, register_generated
from norton_det.data.decode import read_image
from norton_det.data.images import beside
from norton_det.live.detectors import DEMO, DEMO_CONFIG
from norton_det.models.complexity import count_complexity
from norton_det.models.description import NetworkInfo
from norton_det.models.fuse import fuse
from norton_det.utils.errors import InputError
from norton_det.utils.files import atomic_path, write_text
from norton_det.utils.timing import environment, measure

EXAMPLES = """
  tools/walkthrough.py                          into output/demo, 7 to 15 minutes
  tools/walkthrough.py --preset norton-64 --output output/demo-64
  tools/walkthrough.py --iterations 20 --finetune 10 --train-images 40 --val-images 8   only to see it run
"""
TITLE_HEIGHT, ENLARGED, SHOWN = 28, 2.5, 0.5  # pixels above a picture; its scale; the least score that is drawn
LEARNT = 0.5  # AP50 that the dense detector has to reach, else nothing that follows means anything


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--output", default=str(DEMO), metavar="DIR", help="folder for all that it makes")
    parser.add_argument("--preset", default="norton-78", help="how far to compress")
    parser.add_argument("--iterations", type=int, default=560, help="of the dense training")
    parser.add_argument("--finetune", type=int, default=110, help="iterations after the compression")
    parser.add_argument("--train-images", type=int, default=1200)
    parser.add_argument("--val-images", type=int, default=80)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 800], metavar=("H", "W"), help="of the timed frame")
    parser.add_argument("--rounds", type=int, default=8, help="timed frames of each form")
    return parser


class DemoTrainer(NortonTrainer):
    """AdamW: from random weights and in minutes it gets much further than SGD, the optimiser of the real recipes."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=cfg.SOLVER.BASE_LR, weight_decay=0.01, fused=True)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = super().build_model(cfg)
        if not cfg.MODEL.WEIGHTS:  # residual branches start at zero: quicker from random weights
            for name, module in model.backbone.bottom_up.named_modules():
                if name.endswith("bn3"):
                    torch.nn.init.zeros_(module.weight)
        return model.to(memory_format=torch.channels_last)


class Progress(HookBase):
    """A bar over the iterations, with the loss."""

    def __init__(self, name: str) -> None:
        self.name = name

    def before_train(self) -> None:
        self.bar = tqdm(total=self.trainer.max_iter, desc=self.name, unit="it")

    def after_step(self) -> None:
        losses = self.trainer.storage.histories().get("total_loss")
        self.bar.set_postfix_str(f"loss {losses.median(20):.2f}" if losses else "", refresh=False)
        self.bar.update()

    def after_train(self) -> None:
        self.bar.close()


def configure(args: argparse.Namespace, name: str, preset: str, weights: str, iterations: int) -> CfgNode:
    values = {
        "MODEL.NORTON.PRESET": preset,
        "MODEL.WEIGHTS": weights,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.WARMUP_ITERS": min(50, iterations // 4),
    }
    opts = [part for key, value in values.items() for part in (key, value)]
    return load_config(DEMO_CONFIG, opts, output_dir=str(Path(args.output) / name))


def train(cfg: CfgNode, name: str) -> tuple[dict[str, float], str]:
    """Train and evaluate; AP columns and the checkpoint's path."""
    trainer = DemoTrainer(cfg)
    trainer.register_hooks([Progress(name)])
    trainer.resume_or_load(resume=False)
    try:
        trainer.train()
    except KeyboardInterrupt as stopped:
        stopped.args = ("the next make demo starts anew",)
        raise
    return columns(trainer.last_results()), str(Path(cfg.OUTPUT_DIR) / "model_final.pth")


def columns(results: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in published_columns(results)[0].items() if name != "task"}


def pictures(args: argparse.Namespace, cfg: CfgNode, models: dict[str, torch.nn.Module], count: int = 4) -> list[str]:
    """Write the first validation pictures with the detections of each model, left and right; file names."""
    metadata, names = MetadataCatalog.get(cfg.DATASETS.TEST[0]), []
    for index, record in enumerate(DatasetCatalog.get(cfg.DATASETS.TEST[0])[:count]):
        image = read_image(record["file_name"])
        tensor = torch.from_numpy(image).permute(2, 0, 1).float()
        inputs = [{"image": tensor, "height": image.shape[0], "width": image.shape[1]}]
        columns = []
        for title, model in models.items():
            with torch.inference_mode():
                instances = model(inputs)[0]["instances"]
            canvas = Visualizer(image, metadata, scale=ENLARGED, instance_mode=ColorMode.IMAGE)
            picture = canvas.draw_instance_predictions(instances[instances.scores >= SHOWN].to("cpu")).get_image()
            head = np.full((TITLE_HEIGHT, picture.shape[1], 3), 255, np.uint8)
            cv2.putText(head, title, (4, TITLE_HEIGHT - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
            columns.append(np.concatenate([head, picture]))
        names.append(f"compare_{index}.jpg")
        with atomic_path(Path(args.output) / names[-1]) as temporary:
            encoded = cv2.imencode(".jpg", np.ascontiguousarray(beside(columns, shade=255)[:, :, ::-1]))[1]
            temporary.write_bytes(encoded.tobytes())
    return names


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, aligned to be read as plain text too."""
    heads = {
        "model": "model",
        "AP": "AP",
        "AP50": "AP50",
        "AR100": "AR100",
        "macs": "MACs G",
        "params": "params M",
        "mb": "file MB",
        "ms": "ms",
        "fps": "FPS",
        "ratio": "speed-up",
    }
    digits = {"AP": 1, "AP50": 1, "AR100": 1, "macs": 2, "params": 2, "mb": 1, "ms": 0, "fps": 2, "ratio": 2}
    cells = [list(heads.values())]
    for row in rows:
        cells.append(
            [
                ("-" if row.get(key) is None else f"{row[key]:.{digits[key]}f}") if key in digits else row[key]
                for key in heads
            ]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def main() -> None:
    args = make_parser().parse_args()
    started, output = time.perf_counter(), Path(args.output)
    if min(args.iterations, args.finetune) < 1:
        raise InputError(f"expected at least 1 iteration, got {args.iterations} and {args.finetune}")
    setup_logger(str(output / "log.txt"), configure_stdout=False)
    setup_logger(str(output / "log.txt"), configure_stdout=False, name="norton_det")
    logging.captureWarnings(True)

    with tqdm(total=args.train_images + args.val_images, desc="generate", unit="image") as bar:
        shapes = generate_dataset(
            output / "shapes",
            train=args.train_images,
            val=args.val_images,
            height=128,
            width=160,
            smallest=30,
            progress=bar.update,
        )
    register_generated(shapes)

    dense_cfg = configure(args, "dense", "dense", "", args.iterations)
    dense_ap, dense_file = train(dense_cfg, "train dense")
    print(f"dense: AP {dense_ap['AP']:.1f}, AP50 {dense_ap['AP50']:.1f}")
    learnt = not math.isnan(dense_ap["AP50"]) and dense_ap["AP50"] > 100 * LEARNT

    dense = load_detector(configure(args, "dense", "dense", dense_file, args.iterations))
    resnet = dense.backbone.bottom_up
    cfg = configure(args, "norton", args.preset, "", args.finetune)
    spec = spec_from_config(cfg)
    state, report = compress_detector_state(dense.state_dict(), spec, progress=True)
    compressed_file = save_tensors(
        output / "compressed.safetensors", state, NetworkInfo(spec, resnet.preprocessing, 0, resnet.stride_in_1x1)
    )
    write_text(output / "compression.txt", report.table() + "\n")
    print(report.summary())
    cfg = configure(args, "norton", args.preset, str(compressed_file), args.finetune)
    raw_ap = columns(NortonTrainer.test(cfg, load_detector(cfg)))
    norton_ap, norton_file = train(cfg, "fine-tune")
    norton = load_detector(configure(args, "norton", args.preset, norton_file, args.finetune))

    device = dense.device
    noise = torch.randint(0, 256, (3, *args.size), generator=torch.Generator().manual_seed(0)).float()
    frame = [{"image": noise}]
    forms = {"dense": dense, args.preset: norton, "dense fused": fuse(dense), f"{args.preset} fused": fuse(norton)}
    forms = {name: model.to(memory_format=torch.channels_last) for name, model in forms.items()}
    calls = {name: (lambda model=model: model(frame)) for name, model in forms.items()}
    timings = measure(calls, rounds=args.rounds, warmup=2, device=device, progress=True)
    figures = {
        "dense": count_complexity(dense, (3, *args.size)),
        args.preset: count_complexity(norton, (3, *args.size)),
    }
    sizes = {"dense": megabytes(dense), args.preset: megabytes(norton)}
    rows: list[dict[str, Any]] = []
    for name, timing in timings.items():
        base = name.removesuffix(" fused")
        row = {"model": name, **(dense_ap if base == "dense" else norton_ap)}
        row |= {"macs": figures[base].macs / 1e9, "params": figures[base].params / 1e6, "mb": sizes[base]}
        row |= {"ms": 1e3 * timing.median, "fps": timing.fps, "ratio": timings["dense"].median / timing.median}
        rows.append(row)
    rows.insert(1, {"model": f"{args.preset}, not fine-tuned", **raw_ap})

    names = pictures(args, cfg, {"dense": dense, args.preset: norton})
    lines = [table(rows), "", explain(args, environment(device))]
    text = "\n".join(
        ["# Dense and compressed, side by side", "", *lines, "", *(f"![dense left]({name})" for name in names)]
    )
    write_text(output / "report.md", text + "\n")
    write_text(output / "report.json", json.dumps({"rows": rows, "environment": environment(device)}, indent=2) + "\n")
    print("\n".join(["", *lines]))
    print(f"{output}/report.md with {len(names)} pictures; {(time.perf_counter() - started) / 60:.1f} minutes")
    print(f"on more pictures: tools/demo.py --input {shapes}/val2017 --output {output}/found")
    if not learnt:
        raise InputError(
            f"dense AP50: expected more than {100 * LEARNT:.0f}, got {dense_ap['AP50']:.1f}; it has not learnt, so the "
            "figures above say nothing: train longer with --iterations"
        )


def megabytes(model: torch.nn.Module) -> float:
    """What the tensors take in a file, in 10^6 bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6


def explain(args: argparse.Namespace, where: str) -> str:
    """What the columns are."""
    height, width = args.size
    return (
        f"AP, AP50, AR100: COCO, in %, on {args.val_images} generated pictures of 128x160. MACs, ms, FPS: "
        f"the whole detector on one frame of {height}x{width}; median of {args.rounds}, interleaved; {where}. "
        f"Fused: the deploy form, batch normalisation folded, same outputs. {args.preset} has had {args.finetune} "
        f"iterations more than dense, which had {args.iterations}: this shows the road, not what compression costs."
    )


if __name__ == "__main__":
    run(main)

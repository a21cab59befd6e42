"""The work of ``norton-det benchmark``; ``options/benchmark.py`` says what it is."""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..data.decode import read_image
from ..data.images import load_pictures, resized
from ..deploy.benchmark import Runner, available_forms, make_call, peak_memory, time_parts
from ..deploy.loading import load_detector
from ..deploy.speed_table import speed_table
from ..deploy.train_step import make_step
from ..models.complexity import count_complexity
from ..models.factorize import find_layout
from ..models.keys import split_detector_state
from ..models.spec_from_state import spec_from_state
from ..utils.errors import InputError
from ..utils.files import require_file, require_writable, write_text
from ..utils.options import FORMS
from ..utils.plots import plot_groups
from ..utils.timing import environment, measure

WHOLE = {"NECK_RANK": "1", "HEAD_RANK": "1", "BOX_HEAD_RANK": "128"}
DENSE = ["MODEL.NORTON.PRESET", "dense", *(word for key in WHOLE for word in (f"MODEL.NORTON.{key}", "None"))]
TRAIN = "training step"


def read(path: str | None, height: int, width: int) -> np.ndarray:
    """A picture (H, W, 3), RGB, at that size."""
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return resized(read_image(require_file(path, "a picture")), height, width)


def load(args: argparse.Namespace, config: str | None, model: str) -> nn.Module:
    """The detector ``norton`` or ``dense`` of a table."""
    if config is None:
        return load_detector(args.weights if model == "norton" else args.baseline_weights)
    if model == "norton":
        ranks = [word for key, rank in WHOLE.items() for word in (f"MODEL.NORTON.{key}", rank)] if args.whole else []
        return load_detector(args.weights, config, [*ranks, *args.opts])
    opts = args.opts + ([] if args.baseline else DENSE)
    return load_detector(args.baseline_weights, args.baseline or config, opts)


def pictures_of(args: argparse.Namespace) -> list[np.ndarray]:
    """Pictures that int8 is calibrated on."""
    if args.calibrate is None:
        return []
    height, width = args.size
    return load_pictures(args.calibrate, lambda image: resized(image, height, width), count=32)[0]


def memory_of(args: argparse.Namespace, config: str | None, model: str, form: str) -> float:
    """Peak resident megabytes of a process that loads one detector and runs it."""
    words = [sys.executable, "-m", "norton_det", "benchmark", "--only", model, form, "--size", *map(str, args.size)]
    for flag, value in (
        ("--config", config),
        ("--weights", args.weights),
        ("--baseline", args.baseline),
        ("--baseline-weights", args.baseline_weights),
        ("--image", args.image),
        ("--threads", args.threads),
    ):
        words += [flag, str(value)] if value else []
    process = subprocess.run(
        [*words, *(["--whole"] if args.whole else []), *map(str, args.opts)],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise InputError(f"{model}, {form}: expected to run alone, got {process.stderr.strip().splitlines()[-1]}")
    return float(process.stdout.split()[-1])


def run_alone(args: argparse.Namespace) -> None:
    """Run one detector and print its peak memory, in the process that ``memory_of`` starts.

    An exported file is run by one more process, so that the memory that exporting takes does not count.
    """
    model, form = args.only
    picture = read(args.image, *args.size)
    with tempfile.TemporaryDirectory() as folder:
        detector = load(args, args.config_file[0] if args.config_file else None, model)
        runner = make_call(detector, form, picture, Path(folder), threads=args.threads)
        if form.startswith(("onnx", "openvino")):
            path = next(file for file in Path(folder).iterdir() if file.suffix in (".onnx", ".xml"))
            code = (
                "import sys, numpy as np\nfrom norton_det.deploy import Predictor\n"
                "from norton_det.deploy.benchmark import peak_memory\n"
                f"run = Predictor(sys.argv[1], threads={args.threads})\n"
                "[run(np.load(sys.argv[2])) for _ in range(2)]\n"
                "print(peak_memory())"
            )
            picture_file = str(Path(folder) / "picture.npy")
            np.save(picture_file, picture)
            words = [sys.executable, "-c", code, str(path), picture_file]
            process = subprocess.run(words, capture_output=True, text=True, check=True)
            print(process.stdout.split()[-1])
            return
        with torch.inference_mode():
            for _ in range(2):
                runner.call()
    print(peak_memory())


def note_on(baseline: nn.Module) -> str:
    """A line for a baseline that is not dense; empty for one that is."""
    spec, layout = spec_from_state(split_detector_state(baseline.state_dict())[1]), find_layout(baseline)
    if spec.is_dense and not layout:
        return ""
    return f'\n\nThe baseline, "dense" here, is compressed too: {spec}, {len(layout)} factored layers around it.'


def table_of(
    args: argparse.Namespace, config: str | None, forms: list[str], folder: Path
) -> tuple[list[dict[str, Any]], str]:
    """Rows of one table, and what is to be said below it."""
    picture, calibration = read(args.image, *args.size), pictures_of(args)
    models = {name: load(args, config, name) for name in ("dense", "norton")}
    device = next(models["dense"].parameters()).device
    runners: dict[tuple[str, str], Runner] = {}
    pairs = [(model, form) for form in forms for model in models]
    for model, form in tqdm(pairs, "prepare", leave=False):
        exported = Path(tempfile.mkdtemp(dir=folder))
        runners[model, form] = make_call(models[model], form, picture, exported, calibration, args.threads)
    calls = {pair: runner.call for pair, runner in runners.items()}
    timings = measure(calls, rounds=args.rounds, device=device, progress=True)
    if args.train_step:
        steps = {(name, TRAIN): make_step(copy.deepcopy(model), *args.size) for name, model in models.items()}
        timings.update(measure(steps, rounds=max(3, args.rounds // 3), warmup=1, device=device, progress=True))
        pairs += list(steps)
    complexities = {name: count_complexity(model, (3, *args.size)) for name, model in models.items()}
    rows = []
    for model, form in pairs:
        timing = timings[model, form]
        eager = timings.get(("dense", "eager"))
        row = {
            "model": model,
            "form": form,
            "macs": complexities[model].macs,
            "params": complexities[model].params,
            "bytes": None if form == TRAIN else runners[model, form].size,
            "ms": 1e3 * timing.median,
            "p95": 1e3 * timing.percentile(95),
            "fps": timing.fps,
            "vs_eager": None if form == TRAIN or eager is None else eager.median / timing.median,
            "vs_dense": timings["dense", form].median / timing.median,
        }
        if args.parts and form != TRAIN:
            with torch.inference_mode():
                row["parts"] = time_parts(runners[model, form])
        if args.memory and form != TRAIN:
            row["peak_mb"] = memory_of(args, config, model, form)
        rows.append(row)
    return rows, note_on(models["dense"])


def check(args: argparse.Namespace) -> list[str]:
    """The forms to run, once the flags make sense."""
    if min(*args.size, args.rounds, args.threads or 1) < 1 or args.threads == 0:
        raise InputError("--size, --rounds, --threads: expected 1 or more, got less; choose such numbers")
    if not args.config_file and not (args.weights and args.baseline_weights):
        raise InputError("expected detectors; give --config, or --weights and --baseline-weights of torchvision's")
    if len(args.config_file) > 1 and (args.weights or args.baseline or args.baseline_weights):
        raise InputError("--weights: expected one --config beside it, got several; run them one after the other")
    device = "cuda" if torch.cuda.is_available() and args.config_file else "cpu"
    forms = available_forms(device) if args.forms is None else args.forms.split(",")
    forms = list(dict.fromkeys(forms))
    if device == "cpu" and "deploy-fp16" in forms:
        raise InputError("--forms: expected forms of a CPU, got deploy-fp16; leave it out")
    if args.plot and not args.plot.endswith(".png"):
        raise InputError(f"--plot: expected a name ending in .png, got {args.plot}; add the ending")
    if unknown := [form for form in forms if form not in FORMS]:
        raise InputError(f"--forms: expected some of {', '.join(FORMS)}, got {unknown[0]}; choose of them")
    for path in filter(None, (args.json, args.markdown, args.plot)):
        require_writable(path)
    if args.image:
        read(args.image, *args.size)
    return forms


def main(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.only:
        run_alone(args)
        return
    forms = check(args)
    report: dict[str, Any] = {"size": args.size, "rounds": args.rounds, "tables": {}}
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for config in args.config_file or [None]:
            rows, note = table_of(args, config, forms, Path(folder))
            name = Path(config).stem if config else "torchvision"
            name += f" ({len(texts) + 1})" if name in report["tables"] else ""
            report["tables"][name] = rows
            texts.append(f"{name}\n\n{speed_table(rows)}{note}")
            print(texts[-1], end="\n\n")
    if bool(args.weights) != bool(args.baseline_weights):
        print("one of the two has random weights: its detections mean nothing and may take less or more time")
    report["environment"] = environment("cuda" if torch.cuda.is_available() and args.config_file else "cpu")
    texts.append(
        f"{args.size[0]}x{args.size[1]}, batch 1, median of {args.rounds} interleaved frames; {report['environment']}"
    )
    print(texts[-1])
    slower = [
        f"{name}: {row['form']}" for name, rows in report["tables"].items() for row in rows if row["vs_dense"] < 1
    ]
    if slower:
        print(f"slower than dense: {', '.join(slower)}")
    if args.json:
        write_text(args.json, json.dumps(report, indent=1) + "\n")
    if args.markdown:
        write_text(args.markdown, "\n\n".join(texts) + "\n")
    if args.plot:
        rows = next(iter(report["tables"].values()))
        series = {
            model: [row["ms"] for row in rows if row["model"] == model and row["form"] in forms]
            for model in ("dense", "norton")
        }
        plot_groups(args.plot, forms, series, "ms", f"one {args.size[0]}x{args.size[1]} frame, end to end")

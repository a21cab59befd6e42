"""The work of ``norton-det compare``; ``options/compare.py`` says what it is."""

import argparse
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger
from torch import nn

from ..d2.build import load_config, load_detector
from ..d2.datasets import check_config_datasets
from ..d2.evaluation import published_columns
from ..d2.pooling import vectorize_pooling
from ..d2.trainer import NortonTrainer
from ..data.register import register_entries
from ..models.complexity import count_complexity
from ..utils.configs import find_config
from ..utils.errors import InputError
from ..utils.files import require_file, require_writable, write_text
from ..utils.plots import plot_groups
from ..utils.tables import Table, markdown, mean_and_spread

TRAIN = (sys.executable, "-m", "norton_det", "train")


def main(args: argparse.Namespace) -> None:
    output = Path(args.output)
    if args.seeds < 1:
        raise InputError(f"--seeds: expected 1 or more, got {args.seeds}; raise it")
    require_writable(output / "compare.md")
    register_entries(args.register)
    configs = {Path(file).stem: str(find_config(file)) for file in args.config_file}
    if len(configs) < len(args.config_file):
        raise InputError("--config: expected names that differ, got one twice; rename the file")
    trained = dict(entry.rpartition("=")[::2] for entry in args.load)
    if unnamed := [file for name, file in trained.items() if not name or name in configs]:
        raise InputError(f"--load: expected NAME=FILE of another name than the configs, got {unnamed[0]!r}; name it")
    for path in trained.values():
        require_file(path, "a trained detector")
    fingerprints = {name: fingerprint(args, file) for name, file in configs.items()}
    first_config = next(iter(configs.values()))
    fingerprints |= {name: fingerprint(args, first_config, Path(path)) for name, path in trained.items()}
    setup_logger(name="detectron2").setLevel("WARNING")
    table = Table(output / "compare.csv", ("name", "seed"))
    for row in table.rows:
        if fingerprints.get(row["name"], row["settings"]) != row["settings"]:
            raise InputError(f"{table.path}: {row['name']}: expected the settings of its run, got others; use --output")
    runs = [{"name": name, "seed": seed} for seed in range(1, args.seeds + 1) for name in configs]
    for row in table.missing([*runs, *({"name": name, "seed": 0} for name in trained)]):
        name, seed = row["name"], row["seed"]
        if name in trained:
            results = evaluate(args, first_config, trained[name])
        else:
            results = train(args, configs[name], output / f"{name}_{seed}", seed, fingerprints[name])
        for columns in results:
            table.add(row | columns | {"settings": fingerprints[name]})
    write(args, table, list(fingerprints))


def fingerprint(args: argparse.Namespace, config: str, weights: Path | None = None) -> str:
    """What a row depends on beside its seed, in ten letters."""
    cfg = load_config(config, [*args.opts, "OUTPUT_DIR", "", "SEED", "0"])
    check_config_datasets(cfg)
    if len(cfg.DATASETS.TEST) != 1:
        raise InputError(f"{config}: DATASETS.TEST: expected one data set, got {len(cfg.DATASETS.TEST)}; give one")
    changed = [str(weights), weights.stat().st_mtime_ns] if weights else []
    text = json.dumps([cfg.dump(), args.size, args.register, changed])
    return "x" + hashlib.sha256(text.encode()).hexdigest()[:9]


def train(args: argparse.Namespace, config: str, folder: Path, seed: int, settings: str) -> list[dict[str, Any]]:
    """Train one detector in a process of its own, on from its last checkpoint; one row per task."""
    note = folder / "compare.txt"  # of the settings that the checkpoints here are of
    resumed = (folder / "last_checkpoint").exists()
    if resumed and (not note.exists() or note.read_text() != settings):
        raise InputError(f"{folder}: expected a run of these settings, got others; delete it or use --output")
    write_text(note, settings)
    started, results = time.perf_counter(), folder / "results.json"
    words = ["--config", config, "--resume", "--num-gpus", args.num_gpus, "--json", results]
    words += [word for entry in args.register for word in ("--register", entry)]
    words += [*args.opts, "OUTPUT_DIR", folder, "SEED", seed]
    print(f"training {folder.name}, see {folder / 'log.txt'}", file=sys.stderr)
    process = subprocess.run([*TRAIN, *map(str, words)], stdout=subprocess.DEVNULL, check=False)
    if process.returncode:
        raise InputError(f"{folder.name}: expected its training to end, it stopped; run it again to go on")
    minutes = None if resumed else (time.perf_counter() - started) / 60  # of the whole run or not at all
    metrics = next(iter(json.loads(results.read_text()).values()))
    cfg = load_config(config, [*args.opts, "MODEL.WEIGHTS", str(folder / "model_final.pth")])
    return rows_of(args, load_detector(cfg), metrics, minutes)


def evaluate(args: argparse.Namespace, config: str, weights: str) -> list[dict[str, Any]]:
    """Evaluate a trained detector; one row per task."""
    cfg = load_config(config, [*args.opts, "MODEL.WEIGHTS", weights])
    detector = vectorize_pooling(load_detector(cfg))
    return rows_of(args, detector, NortonTrainer.test(cfg, detector), None)


def rows_of(
    args: argparse.Namespace, detector: nn.Module, metrics: dict[str, Any], minutes: float | None
) -> list[dict[str, Any]]:
    """The published columns of each task, with what the detector costs."""
    complexity = count_complexity(detector, (3, *args.size))
    return [
        columns | {"macs": complexity.macs, "params": complexity.params, "minutes": minutes}
        for columns in published_columns(metrics)
    ]


def write(args: argparse.Namespace, table: Table, names: list[str]) -> None:
    """Means over the seeds of the rows asked for: the table, and a plot of AP."""
    tasks = list(dict.fromkeys(row["task"] for row in table.rows if row["name"] in names))
    texts: list[str] = []
    series: dict[str, list[float]] = {}
    for task in tasks:
        rows = []
        for name in names:
            runs = [row for row in table.rows if (row["task"], row["name"]) == (task, name)]
            if not runs:  # a detector without masks, say
                series.setdefault(task, []).append(math.nan)
                continue
            columns = [key for key in runs[0] if key.startswith("A") and isinstance(runs[0][key], int | float)]
            minutes = [run["minutes"] for run in runs if isinstance(run["minutes"], int | float)]
            rows.append(
                {"detector": name, "runs": len(runs)}
                | {key: mean_and_spread([run[key] for run in runs]) for key in columns}
                | {"MACs G": runs[0]["macs"] / 1e9, "params M": runs[0]["params"] / 1e6}
                | {"minutes": statistics.mean(minutes) if minutes else None}
            )
            series.setdefault(task, []).append(statistics.mean([run["AP"] for run in runs]))
        texts.append(f"{task}\n\n{markdown(rows)}")
    height, width = args.size
    text = "\n".join(texts) + f"\nmean ± standard deviation over runs; MACs at {width}x{height}\n"
    write_text(Path(args.output) / "compare.md", text)
    plot_groups(Path(args.output) / "compare.png", names, series, "AP", "the same budget")
    print(text)

"""The work of ``norton-det tradeoff``; ``options/tradeoff.py`` says what it is."""

import argparse
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger

from ..d2.build import compress_to_file, load_config, load_detector, to_input
from ..d2.datasets import check_config_datasets
from ..d2.evaluation import published_columns
from ..d2.trainer import NortonTrainer
from ..data.decode import read_image
from ..data.images import find_images, load_pictures, resized
from ..deploy.benchmark import make_call
from ..models.complexity import count_complexity
from ..models.spec import CompressionSpec
from ..utils.errors import InputError
from ..utils.files import require_file, require_writable, write_text
from ..utils.plots import plot_lines
from ..utils.tables import Table, markdown
from ..utils.timing import environment, measure

RANKS = {"neck": "neck_rank", "head": "head_rank", "box": "box_head_rank"}
DEFAULTS = {"neck": 1, "head": 1, "box": 128}


def parse_case(text: str) -> tuple[str, dict[str, int | None]]:
    """Preset and ranks of a case, as ``compress_detector`` takes them."""
    preset, *settings = text.split(",")
    if preset != "dense":
        CompressionSpec.preset(preset)
    ranks: dict[str, int | None] = dict(DEFAULTS)
    for setting in settings:
        name, _, rank = setting.partition("=")
        if name not in RANKS or not (rank.isdigit() or rank == "dense"):
            raise InputError(
                f"--case {text}: expected {', '.join(f'{layers}=R' for layers in RANKS)}, got {setting!r}; write neck=2"
            )
        ranks[name] = None if rank == "dense" else int(rank)
    return preset, {RANKS[name]: rank for name, rank in ranks.items()}


def main(args: argparse.Namespace) -> None:
    output = Path(args.output)
    require_writable(output / "tradeoff.md")
    cases = {text: parse_case(text) for text in args.case}
    trained = dict(entry.rpartition("=")[::2] for entry in args.trained)
    for path in (args.weights, *trained.values()):
        require_file(path, "a trained detector")
    cfg = load_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights])
    check_config_datasets(cfg, training=False)
    setup_logger(name="detectron2").setLevel("WARNING")
    table = Table(output / "tradeoff.csv", ("case",))
    paths = {"dense": Path(args.weights)} | {name: Path(file) for name, file in trained.items()}
    paths |= {text: output / f"{text.replace(',', '_').replace('=', '')}.safetensors" for text in cases}
    for row in table.missing([{"case": case} for case in paths]):
        case = row["case"]
        if case in cases and not paths[case].exists():
            preset, ranks = cases[case]
            pictures, _ = load_pictures(args.calibrate, to_input(cfg), count=args.images)
            spec = None if preset == "dense" else preset
            compress_to_file(paths[case], cfg, spec, calibration=pictures, whole=True, **ranks)
        detector = load(args, paths[case])
        complexity = count_complexity(detector, (3, *args.size))
        columns = published_columns(NortonTrainer.test(cfg, detector))[0]
        table.add(
            {**row, "AP": columns["AP"], "AP50": columns["AP50"], "macs": complexity.macs, "params": complexity.params}
        )
    time_all(args, paths, table)


def load(args: argparse.Namespace, path: Path) -> Any:
    """The detector of the config with the weights of a case."""
    return load_detector(load_config(args.config_file, [*args.opts, "MODEL.WEIGHTS", str(path)]))


def time_all(args: argparse.Namespace, paths: dict[str, Path], table: Table) -> None:
    """Time every case in turns; write the table and the plot."""
    picture = resized(read_image(find_images(args.calibrate)[0]), *args.size)
    calls = {}
    for case, path in paths.items():
        folder = Path(args.output) / "exported" / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        calls[case] = make_call(load(args, path), args.form, picture, folder).call
    timings = measure(calls, rounds=args.rounds, progress=True)
    rows = []
    for row in table.rows:
        if row["case"] in timings:
            rows.append(
                {
                    "case": row["case"],
                    "AP": row["AP"],
                    "AP50": row["AP50"],
                    "MACs G": row["macs"] / 1e9,
                    "params M": row["params"] / 1e6,
                    "ms": 1e3 * timings[row["case"]].median,
                    "speed-up": timings["dense"].median / timings[row["case"]].median,
                }
            )
    height, width = args.size
    text = f"{args.form}, {width}x{height}, median of {args.rounds} interleaved frames; {environment()}"
    output = Path(args.output)
    write_text(output / "tradeoff.md", f"{text}\n\n{markdown(rows)}")
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in sorted(rows, key=lambda case: case["ms"]):
        name = row["case"].partition(",")[0]
        series.setdefault(name, ([], []))
        series[name][0].append(row["ms"])
        series[name][1].append(row["AP"])
    plot_lines(output / "tradeoff.png", series, f"ms, {args.form}, {width}x{height}", "AP", "AP against time")
    print(f"{text}\n\n{markdown(rows)}")

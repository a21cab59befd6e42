"""What calibration keeps at each published level, switch by switch, and what one fine-tuning stage adds."""

from collections import defaultdict
from typing import Any

from norton_det.decomposition.cp import cp_decompose_layers
from norton_det.models.resnet import NortonResNet
from norton_det.models.spec import CompressionSpec
from norton_det.utils.plots import plot_groups
from norton_det.utils.tables import Table, markdown, mean_and_spread

from .bench import Bench, timed
from .release import release_state

LEVELS = ("norton-43", "norton-50", "norton-64", "norton-77", "norton-78")
OFF: dict[str, Any] = {"compensate": False, "decomposition": "weight"}
STEPS: dict[str, dict[str, Any] | None] = {  # each adds one switch; None: no images
    "release": None,
    "PABS": None,
    "+ BN": OFF,
    "+ compensation": OFF | {"compensate": True},
    "+ output CP": {},
    "+ css": {},
}


def release(bench: Bench, spec: CompressionSpec) -> NortonResNet:
    """The network as the release's procedure leaves it."""
    state = bench.loaded.state
    names = [f"layer{stage}.{block}.conv2" for stage, block in spec.blocks()]
    found = cp_decompose_layers([state[f"{name}.weight"] for name in names], list(spec.ranks))  # type: ignore[arg-type]
    model = NortonResNet(spec, bench.loaded.num_classes)
    model.load_state_dict(release_state(state, dict(zip(names, found, strict=True)), spec))
    return model.eval()


def calibration(bench: Bench, table: Table) -> str:
    """Top-1 before any fine-tuning: level x switch."""
    dense = bench.accuracy(bench.dense)
    for row in table.missing([{"level": level, "step": step} for level in LEVELS for step in STEPS]):
        spec, step = CompressionSpec.preset(row["level"]), row["step"]
        seconds = 0.0
        if step == "release":
            model = release(bench, spec)
        else:
            switches = STEPS[step]
            images = None if switches is None else bench.calibration(**switches)
            criterion = "css" if step == "+ css" else "pabs"
            (model, _), seconds = timed(bench.compress, spec, criterion=criterion, calibration=images)
        top1 = bench.accuracy(model)
        table.add({**row, "top1": top1, "kept_percent": 100 * top1 / dense, "seconds": seconds, "dense_top1": dense})
    kept = {(row["level"], row["step"]): row for row in table.rows}
    rows = [
        {"level": level}
        | {step: kept[level, step]["kept_percent"] for step in STEPS}
        | {"seconds, all on": round(kept[level, "+ css"]["seconds"])}
        for level in LEVELS
    ]
    series = {step: [kept[level, step]["kept_percent"] for level in LEVELS] for step in STEPS}
    plot_groups(table.path.with_suffix(".png"), LEVELS, series, "Top-1 kept, % of dense", "Before any fine-tuning")
    return f"Top-1 in % of the dense network's {dense:.2f} %, before any fine-tuning.\n\n{markdown(rows)}"


def finetune(bench: Bench, table: Table) -> str:
    """Top-1 after one short stage, dense and every level, the same images and recipe; over seeds."""
    wanted = [{"level": level, "seed": seed} for seed in range(bench.settings.seeds) for level in ("dense", *LEVELS)]
    for row in table.missing(wanted):
        level, seed = row["level"], row["seed"]
        if level == "dense":
            model = bench.loaded.build()
        else:
            model, _ = bench.compress(CompressionSpec.preset(level), calibration=bench.calibration(seed), seed=seed)
        before = bench.accuracy(model)
        after, seconds = timed(bench.tune, model, seed)
        table.add({**row, "before": before, "after": after, "minutes": seconds / 60})
    grouped: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in table.rows:
        for field in ("before", "after", "minutes"):
            if row[field] != "":  # minutes of a run that was interrupted are left out
                grouped[row["level"]][field].append(row[field])
    dense = grouped["dense"]["after"]
    rows = []
    for level in ("dense", *LEVELS):
        found = grouped[level]
        rows.append(
            {
                "level": level,
                "before": mean_and_spread(found["before"]),
                "after": mean_and_spread(found["after"]),
                "against dense": sum(found["after"]) / len(found["after"]) - sum(dense) / len(dense),
                "minutes": sum(found["minutes"]) / len(found["minutes"]),
            }
        )
    series = {
        when: [sum(grouped[level][when]) / len(grouped[level][when]) for level in ("dense", *LEVELS)]
        for when in ("before", "after")
    }
    plot_groups(table.path.with_suffix(".png"), ("dense", *LEVELS), series, "Top-1 %", "One fine-tuning stage")
    settings = bench.settings
    return (
        f"Top-1 in %, {settings.epochs:g} x {settings.finetune_images} training images, learning rate "
        f"{settings.learning_rate:g} for batches of {settings.batch_size}, half of the loss from the dense network's "
        f"outputs, weights averaged with decay {settings.ema:g}; mean ± standard deviation over {settings.seeds} "
        f"seeds.\n\n{markdown(rows)}"
    )

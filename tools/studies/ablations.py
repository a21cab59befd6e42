"""The ablations of the paper: rank, criterion, decomposition and pruning apart, other decompositions, rank or ratio."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from norton_det.compression.criteria import criteria as criterion_names
from norton_det.compression.precise_bn import reestimate_batch_norm
from norton_det.decomposition.cp import cp_decompose, nmse, reconstruct
from norton_det.models.spec import CompressionSpec
from norton_det.utils.plots import plot_groups, plot_lines
from norton_det.utils.tables import Table, markdown, mean_and_spread

from .bench import BATCH, Bench, macs_of, ratio_for
from .calibrated import OFF

DENSE_MACS = macs_of(CompressionSpec.dense())


def rank(bench: Bench, table: Table) -> str:
    """(a) Decomposition alone at ranks 1 to 9: error, cost, accuracy before and after fine-tuning."""
    for row in table.missing([{"rank": rank} for rank in range(1, 10)]):
        spec = CompressionSpec.parse(row["rank"], "[0.]*20")
        plain, report = bench.compress(spec)
        errors = [layer.nmse for layer in report.layers if layer.rank]
        fitted, _ = bench.compress(spec, calibration=bench.calibration())
        before = bench.accuracy(fitted)
        found = {
            "NMSE": sum(errors) / len(errors),
            "MACs G": macs_of(spec) / 1e9,
            "params M": report.params[1] / 1e6,
            "no data": bench.accuracy(plain),
            "calibrated": before,
            "fine-tuned": bench.tune(fitted),
        }
        table.add(row | found)
    ranks = [row["rank"] for row in table.rows]
    series = {name: (ranks, [row[name] for row in table.rows]) for name in ("no data", "calibrated", "fine-tuned")}
    plot_lines(table.path.with_suffix(".png"), series, "CP rank", "Top-1 %", "Decomposition alone, no pruning")
    return markdown(table.rows)


def criteria(bench: Bench, table: Table) -> str:
    """(b) Criteria at the same ratios (norton-64), over seeds of the images (and of the random choice)."""
    spec = CompressionSpec.preset("norton-64")
    wanted = [{"criterion": name, "seed": seed} for seed in range(bench.settings.seeds) for name in criterion_names()]
    for row in table.missing(wanted):
        found = {}
        for name, switches in (("BN only", OFF), ("calibrated", {})):
            images = bench.calibration(row["seed"], **switches)
            model, _ = bench.compress(spec, criterion=row["criterion"], calibration=images, seed=row["seed"])
            found[name] = bench.accuracy(model)
        table.add(row | found)
    grouped: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in table.rows:
        for name in ("BN only", "calibrated"):
            grouped[row["criterion"]][name].append(row[name])
    rows = [
        {"criterion": name} | {when: mean_and_spread(values) for when, values in found.items()}
        for name, found in grouped.items()
    ]
    series = {
        when: [sum(found[when]) / len(found[when]) for found in grouped.values()] for when in ("BN only", "calibrated")
    }
    plot_groups(table.path.with_suffix(".png"), list(grouped), series, "Top-1 %", "norton-64 by criterion")
    return markdown(rows)


def steps(bench: Bench, table: Table) -> str:
    """(c) Decomposition alone, pruning alone, both, at the same MACs."""
    light = macs_of(CompressionSpec.parse(1, "[0.]*20"))
    heavy = macs_of(CompressionSpec.preset("norton-64"))
    cases = {
        "decomposition alone": CompressionSpec.parse(1, "[0.]*20"),
        "pruning alone": ratio_for(light, None),
        "both (rank 2)": ratio_for(light, 2),
        "pruning alone, stronger": ratio_for(heavy, None),
        "both (rank 1), stronger": ratio_for(heavy, 1),
    }
    for row in table.missing([{"case": case} for case in cases]):
        spec = cases[row["case"]]
        table.add(row | measure(bench, spec))
    plot_measures(table, [row["case"] for row in table.rows], "")
    return markdown(table.rows)


def tradeoff(bench: Bench, table: Table) -> str:
    """(e) Rank against ratio at 65 % fewer MACs: a higher rank has to be paid by more pruning."""
    for row in table.missing([{"rank": rank} for rank in ("dense", 1, 2, 3, 4)]):
        spec = ratio_for(0.35 * DENSE_MACS, None if row["rank"] == "dense" else row["rank"])
        table.add(row | {"ratio": spec.ratios[1]} | measure(bench, spec))
    plot_measures(
        table, ["no CP" if row["rank"] == "dense" else f"rank {row['rank']}" for row in table.rows], "65 % fewer MACs"
    )
    return markdown(table.rows)


def measure(bench: Bench, spec: CompressionSpec) -> dict[str, float]:
    """Cost of a spec, and Top-1 with statistics alone, calibrated, and fine-tuned from there."""
    statistics, _ = bench.compress(spec, criterion="pabs", calibration=bench.calibration(**OFF))
    model, report = bench.compress(spec, calibration=bench.calibration())
    found = {
        "MACs G": macs_of(spec) / 1e9,
        "saved %": 100 * (1 - macs_of(spec) / DENSE_MACS),
        "params M": report.params[1] / 1e6,
        "PABS, BN only": bench.accuracy(statistics),
        "calibrated": bench.accuracy(model),
    }
    return found | {"fine-tuned": bench.tune(model)}


def plot_measures(table: Table, names: Sequence[str], title: str) -> None:
    series = {name: [row[name] for row in table.rows] for name in ("PABS, BN only", "calibrated", "fine-tuned")}
    plot_groups(table.path.with_suffix(".png"), names, series, "Top-1 %", title)


def methods(bench: Bench, table: Table) -> str:
    """(d) Filter-wise CP against layer-wise CP, SVD and Tucker-2 of the 3x3 weights, at the same MACs."""
    wanted = [{"rank": rank, "method": name} for rank in (1, 2, 3) for name in ("filter-wise CP", *LAYER_METHODS)]
    names = [f"layer{stage}.{block}.conv2" for stage, block in bench.loaded.spec.blocks()]
    for row in table.missing(wanted):
        model, errors = bench.loaded.build(), []
        for name in names:
            conv = model.get_submodule(name)
            weight = conv.weight.detach()
            outputs, inputs = weight.shape[:2]
            if row["method"] == "filter-wise CP":
                factors = cp_decompose(weight, row["rank"])
                new = reconstruct(factors)
                errors.append(nmse(weight, factors))
            else:
                budget = row["rank"] * outputs * (inputs + 6)  # MACs a position, as the CPD block's
                new = LAYER_METHODS[row["method"]](weight, budget)
                errors.append(float((weight - new).square().sum() / weight.square().sum()))
            conv.weight.data.copy_(new)
        reestimate_batch_norm(model, bench.calibration().images.split(BATCH))
        table.add(row | {"NMSE": sum(errors) / len(errors), "top1, BN re-estimated": bench.accuracy(model)})
    series = {
        name: ([1, 2, 3], [row["top1, BN re-estimated"] for row in table.rows if row["method"] == name])
        for name in ("filter-wise CP", *LAYER_METHODS)
    }
    plot_lines(
        table.path.with_suffix(".png"), series, "MACs of rank-R filter-wise CP, R", "Top-1 %", "3x3 layers decomposed"
    )
    return markdown(table.rows, digits=3)


def layer_cp(weight: Tensor, budget: int) -> Tensor:
    """One CP of the whole layer: 1x1 (I -> r), 3x1, 1x3, 1x1 (r -> O)."""
    import tensorly
    from tensorly.decomposition import parafac

    outputs, inputs, height, width = weight.shape
    rank = max(1, budget // (inputs + height + width + outputs))
    tensorly.set_backend("pytorch")
    unfolded = weight.flatten(2)  # (O, I, K): one mode for the kernel is more general than two
    found = parafac(unfolded, rank, init="random", random_state=0, n_iter_max=15, tol=1e-6)
    tensorly.set_backend("numpy")
    parts = [factor.detach() for factor in found.factors]
    return torch.einsum("r,or,ir,kr->oik", found.weights, *parts).view_as(weight)


def svd(weight: Tensor, budget: int) -> Tensor:
    """The weight reshaped to O x (I*K): a 3x3 with r outputs, then 1x1 (r -> O)."""
    outputs = len(weight)
    columns = weight[0].numel()
    rank = max(1, min(outputs, budget // (columns + outputs)))
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).view_as(weight)


def tucker(weight: Tensor, budget: int) -> Tensor:
    """Tucker-2 over outputs and inputs: 1x1 (I -> r), 3x3 (r -> r), 1x1 (r -> O)."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    outputs, inputs, height, width = weight.shape
    size = height * width
    ranks = [1, 1]  # of outputs and inputs, raised together
    while True:
        more = [min(ranks[0] + 1, outputs), min(ranks[1] + 1, inputs)]
        if more == ranks or more[1] * inputs + size * more[0] * more[1] + more[0] * outputs > budget:
            break
        ranks = more
    tensorly.set_backend("pytorch")
    (core, factors), _ = partial_tucker(weight, rank=ranks, modes=[0, 1], n_iter_max=10)
    tensorly.set_backend("numpy")
    return torch.einsum("abhw,oa,ib->oihw", core, *factors)


LAYER_METHODS = {"layer-wise CP": layer_cp, "SVD": svd, "Tucker-2": tucker}

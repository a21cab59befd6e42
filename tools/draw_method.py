#!/usr/bin/env python3
"""Draw the pictures of docs/method.md: the CP decomposition, the CPDBlock, pruning, coupled channels, calibration.

What the pictures say in numbers (MACs, the order in which filters are dropped) is computed by the package."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from norton_det.commands.parser import command_parser, importing, run

with importing():
    import drawing
    import torch
    from torch import nn

    from norton_det.compression.criteria import elimination_order
    from norton_det.models.complexity import count_complexity
    from norton_det.models.layers import CPConv2d
    from norton_det.utils.files import atomic_path

EXAMPLES = """
  tools/draw_method.py                                        all pictures, into docs/images
  tools/draw_method.py --only pruning --output output/method  one, elsewhere
"""
WIDTH = 256  # channels of the layer whose MACs the picture of the block tells
POINTS = ((0.6, 1.35), (0.95, 1.62), (1.75, 1.55), (2.1, 0.85), (1.85, 0.45), (0.7, 0.5))  # filters in "pruning"


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--output", default="docs/images", metavar="DIR", help="folder for method_*.png")
    parser.add_argument("--only", choices=FIGURES, action="append", default=[], help="this picture; may be repeated")
    return parser


def decomposition(axes: Any) -> None:
    """One filter as a sum of outer products; below it, factors of each filter against factors shared by a layer."""
    drawing.title(axes, 0, 8.75, "One filter is a sum of R outer products")
    drawing.cuboid(axes, 0.4, 6.45, 1.0, 1.0, 1.3, drawing.COLORS[0])
    drawing.label(axes, 0.9, 6.2, "$K_w$")
    drawing.label(axes, 0.12, 6.95, "$K_h$")
    drawing.label(axes, 1.95, 6.62, "$I$")
    for place, sign, index in ((2.75, "=", "1"), (5.65, "+ ... +", "R")):
        drawing.label(axes, place - 0.3, 7.05, sign, 15)
        drawing.outer_product(axes, place + 0.35, 6.55, index, drawing.COLORS[0])
    drawing.label(axes, 4, 5.55, r"$\mathcal{W}_o[i,h,w]\;=\;\sum_{r=1}^{R}\;A_o[i,r]\;B_o[h,r]\;C_o[w,r]$", 14)
    drawing.line(axes, 0, 5.05, 8, 5.05)
    drawing.title(axes, 0, 4.7, "Filter-wise (NORTON)")
    drawing.title(axes, 4.35, 4.7, "Layer-wise, to compare")
    for row, (name, color) in enumerate(zip(("1", "2", "O"), drawing.COLORS[:3], strict=True)):
        low = (3.3, 2.1, 0.5)[row]
        drawing.cuboid(axes, 0.05, low + 0.1, 0.45, 0.45, 0.5, color)
        drawing.arrow(axes, 0.95, low + 0.4, 1.3, low + 0.4)
        drawing.factors(axes, 1.45, low, name, color)
    drawing.label(axes, 0.3, 1.72, "...", 16)
    drawing.label(axes, 1.95, -0.25, "O sets of factors: filters stay\nseparate, so they can be pruned")
    for row, color in enumerate(drawing.COLORS[2::-1]):
        drawing.cuboid(axes, 4.4 + 0.12 * (2 - row), 2.35 + 0.4 * (2 - row), 0.45, 0.45, 0.5, color)
    drawing.arrow(axes, 5.5, 2.95, 5.85, 2.95)
    drawing.factors(axes, 6.0, 2.55, "", drawing.GREY)
    drawing.matrix(axes, 6.0, 0.75, 0.5, 1.2, 2, 5, drawing.GREY)
    drawing.label(axes, 6.25, 0.5, "$D$")
    drawing.label(axes, 6.65, 1.35, "a row for\neach filter", align="left")
    drawing.label(axes, 6.2, -0.25, "one set for all O filters,\nmixed by $D$ ($O$ x $R'$)")


def block(axes: Any) -> None:
    """The CPDBlock as it is trained and as it is deployed, channel by channel, with MACs."""
    filters, rank, step = 3, 2, 0.46
    owners = [index // rank for index in range(filters * rank)]
    for left, name in ((0.0, "Trained: CPDBlock"), (4.3, "Deployed: fused")):
        drawing.title(axes, left, 8.75, name)
    for left, layers in ((0.35, ("1x1", "$K_h$x1", "1x$K_w$", "sum")), (4.65, ("1x1", "$K_h$x$K_w$"))):
        levels = [7.9, 6.45, 5.3, 4.15, 3.0] if len(layers) == 4 else [7.9, 6.45, 3.0]
        wide = [left + step * index for index in range(filters * rank)]
        narrow = [left + step * (rank * index + (rank - 1) / 2) for index in range(filters)]
        entry = [left + step * (0.5 + 1.15 * index) for index in range(5)]
        drawing.cells(axes, entry, levels[0], [None] * 5)
        drawing.label(axes, left + 3.1, levels[0], "$I$", align="right")
        for place in entry:
            for other, owner in zip(wide, owners, strict=True):
                drawing.thread(axes, place, levels[0], other, levels[1], drawing.COLORS[owner], 0.5)
        for upper, lower, layer in zip(levels[1:], [*levels[2:], None], layers, strict=True):
            last = lower is None
            drawing.cells(axes, narrow if last else wide, upper, list(range(filters)) if last else owners)
            drawing.label(axes, left + 3.1, upper, "$O$" if last else "$O R$", align="right")
            above = levels[levels.index(upper) - 1]
            drawing.badge(axes, left + 1.15, (above + upper) / 2, layer)
            if last:
                continue
            ends = [narrow[owner] for owner in owners] if lower == levels[-1] else wide
            for place, other, owner in zip(wide, ends, owners, strict=True):
                drawing.thread(axes, place, upper, other, lower, drawing.COLORS[owner], 1.6)
    drawing.label(axes, 1.5, 2.5, "1x1, two depthwise, sum")
    drawing.label(axes, 5.8, 2.5, "1x1, one grouped: same outputs")
    drawing.line(axes, 0, 2.15, 8, 2.15)
    rows = [("MACs per output pixel", "R = 1", "R = 2", "R = 3"), *macs()]
    for index, row in enumerate(rows):
        for column, text in enumerate(row):
            place, align = ((0.05, "left"), (4.6, "right"), (6.25, "right"), (7.9, "right"))[column]
            drawing.label(axes, place, 1.8 - 0.43 * index, text, 12, align, bold=index == 0)


def macs() -> list[tuple[str, ...]]:
    """MACs for one pixel of a 3x3 layer with stride 1, counted: dense, trained form, deploy form, by rank."""
    convs = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)] * 3
    trained = [CPConv2d(WIDTH, WIDTH, 3, rank, padding=1, bias=False) for rank in (1, 2, 3)]
    forms = {"dense 3x3": convs, "trained": trained, "deployed": [layer.fuse() for layer in trained]}
    lines = []
    for name, layers in forms.items():
        counts = [count_complexity(layer, (WIDTH, 1, 1)).macs for layer in layers]
        lines.append((f"{name}, $I = O = {WIDTH}$", *(f"{count:,}" for count in counts)))
    return lines


def pruning(axes: Any) -> None:
    """Principal angles of two filters in the three modes, and three steps of the elimination."""
    drawing.title(axes, 0, 8.75, "Distance of filters i and j: principal angles of their factors")
    for index, (name, angle) in enumerate((("A", 24), ("B", 58), ("C", 40))):
        left = 0.25 + 2.75 * index
        drawing.angle(axes, left, 6.3, angle, rf"$\theta_{name}$", f"span ${name}_i$", f"span ${name}_j$")
    drawing.label(axes, 4, 5.6, r"$d(i,j)\;=\;\theta_A(i,j)+\theta_B(i,j)+\theta_C(i,j)$", 14)
    drawing.line(axes, 0, 5.1, 8, 5.1)
    drawing.title(axes, 0, 4.7, "Elimination: the closest pair loses one, again and again")
    points = torch.tensor(POINTS, dtype=torch.double)
    distance = torch.cdist(points, points)
    order = elimination_order(distance).tolist()
    for step in range(3):
        left, gone = 2.75 * step, order[:step]
        stay = [index for index in range(len(points)) if index not in gone]
        drop = order[step]
        other = min((index for index in stay if index != drop), key=lambda index: float(distance[drop, index]))
        sums = {index: float(distance[index, stay].sum()) for index in (drop, other)}
        drawing.frame(axes, left, 1.2, 2.5, 3.0)
        drawing.label(axes, left + 1.25, 3.95, f"step {step + 1}", bold=True)
        drawing.thread(
            axes,
            *(float(v) for i in (drop, other) for v in points[i] + points.new_tensor([left, 1.75])),
            drawing.COLORS[1],
            2.5,
        )
        for index, (x, y) in enumerate(points.tolist()):
            kind = "gone" if index in gone else "drop" if index == drop else "pair" if index == other else "stay"
            drawing.point(axes, left + x, 1.75 + y, str(index + 1), kind)
        drawing.label(axes, left + 1.25, 1.62, f"sum {sums[drop]:.2f} < {sums[other]:.2f}\ndrop {drop + 1}")


def coupled(axes: Any) -> None:
    """The layers that write one residual stream, with one index set for all."""
    kept = {0, 1, 3, 4, 7, 8, 9}
    count, step, left = 11, 0.44, 2.95
    drawing.title(axes, 0, 8.75, "Coupled channels: one index set for a residual stage")
    names = ("shortcut\n(projection)", "block 1\nconv3", "block 2\nconv3", "block 3\nconv3")
    places = [left + step * index for index in range(count)]
    levels = (7.6, 6.35, 5.1, 3.85)
    for index in range(count):
        drawing.column(axes, places[index], 2.05, 8.05, index in kept)
    for name, level in zip(names, levels, strict=True):
        drawing.label(axes, 1.9, level, name, align="right")
        drawing.cells(axes, places, level, [0 if index in kept else None for index in range(count)])
    for level in levels[:-1]:
        drawing.label(axes, 2.35, level - 0.62, "+", 16)
    drawing.label(axes, 1.9, 2.5, "stream: what the\nnext layers read", align="right")
    drawing.cells(axes, places, 2.5, [2 if index in kept else None for index in range(count)])
    drawing.arrow(axes, 2.35, 3.45, 2.35, 2.8)


def calibration(axes: Any) -> None:
    """The dense network teaches the small one, layer by layer, through second moments."""
    drawing.title(axes, 0, 8.75, "Calibration: fitted to the dense network, in turn")
    drawing.label(axes, 0, 8.0, "Both read the same unlabelled images.", align="left")
    for row, (level, color, name) in enumerate(((6.7, drawing.GREY, "dense"), (2.55, drawing.COLORS[0], "small"))):
        drawing.label(axes, 0.7, level + 0.37, name, 14, bold=True)
        for index in range(3):
            now = index == 1
            x = 1.75 + 2.2 * index
            text = f"layer {index + 1}"
            drawing.box(axes, x, level, 1.55, 0.75, text, color, strong=now or row == 0, done=row == 1 and index == 0)
            drawing.arrow(axes, x - (0.4 if index == 0 else 0.6), level + 0.37, x - 0.05, level + 0.37)
        drawing.arrow(axes, 7.75, level + 0.37, 8.1, level + 0.37)
    drawing.box(
        axes,
        2.0,
        4.35,
        4.7,
        1.2,
        "$M = E\\,[x\\,x^T]$      $N = E\\,[y\\,x^T]$\n$W = \\mathrm{argmin}\\;E\\,\\|y - W x\\|^2 = N M^{-1}$",
        drawing.COLORS[2],
        strong=True,
    )
    drawing.arrow(axes, 5.75, 6.95, 5.75, 5.6, drawing.COLORS[1])
    drawing.label(axes, 5.9, 6.1, "targets $y$", align="left")
    drawing.arrow(axes, 3.55, 3.0, 3.0, 4.3, drawing.COLORS[1])
    drawing.label(axes, 2.95, 3.75, "inputs $x$", align="right")
    drawing.arrow(axes, 4.9, 4.3, 4.9, 3.35, drawing.COLORS[2])
    drawing.label(axes, 5.05, 3.85, "solution", align="left")
    for index, text in enumerate(("done", "fitted now", "comes next")):
        drawing.label(axes, 2.52 + 2.2 * index, 2.2, text)


FIGURES: dict[str, Callable[[Any], None]] = {
    "decomposition": decomposition,
    "block": block,
    "pruning": pruning,
    "coupled": coupled,
    "calibration": calibration,
}
LOWEST = {"decomposition": -0.6, "block": 0.15, "pruning": 1.0, "coupled": 1.8, "calibration": 1.9}  # of the canvas


def main() -> None:
    args = make_parser().parse_args()
    for name in args.only or FIGURES:
        file = Path(args.output) / f"method_{name}.png"
        figure, axes = drawing.canvas(LOWEST[name])
        FIGURES[name](axes)
        with atomic_path(file) as temporary:
            drawing.save(figure, temporary)
        print(file)


if __name__ == "__main__":
    run(main)

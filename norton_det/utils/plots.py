"""Small plots of results. matplotlib is imported by the functions; without it there is no plot, and a line says so."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import atomic_path


def plot_lines(
    path: str | Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    title: str = "",
) -> bool:
    """Lines with markers as a PNG.

    Args:
        path: where to.
        series: (x values, y values) by the name for the legend.
        x_label, y_label, title: texts.

    Returns:
        Whether it was drawn.
    """

    def draw(axes: Any) -> None:
        for name, (x, y) in series.items():
            axes.plot(x, y, marker="o", markersize=4, label=name)
        axes.set_xlabel(x_label)
        if all(float(value).is_integer() for x, _ in series.values() for value in x):
            axes.xaxis.get_major_locator().set_params(integer=True)

    return _plot(path, draw, y_label, title, len(series) > 1)


def plot_groups(
    path: str | Path, groups: Sequence[str], series: Mapping[str, Sequence[float]], y_label: str, title: str = ""
) -> bool:
    """Grouped points with their values as a PNG: one group per name, one point in it per series. Returns whether it was
    drawn.

    Points, not bars: the axis need not start at zero, so that small differences are seen. NaN is no point.
    """

    def draw(axes: Any) -> None:
        width = 0.75 / len(series)
        values = [value for points in series.values() for value in points if math.isfinite(value)]
        top, extent = max(values), max(max(values) - min(values), 1.0)
        axes.set_ylim(min(values) - 0.12 * extent, top + 0.15 * extent)
        for index, (name, points) in enumerate(series.items()):
            places = [place + (index - (len(series) - 1) / 2) * width for place in range(len(groups))]
            axes.plot(places, points, "o", markersize=5, label=name)
            if len(values) > 20:
                continue  # their values would overlap
            for place, value in zip(places, points, strict=True):
                if not math.isfinite(value):
                    continue
                axes.annotate(
                    f"{value:.1f}", (place, value), (0, 5), textcoords="offset points", ha="center", fontsize=6
                )
        long = sum(map(len, groups)) > 70
        axes.set_xticks(range(len(groups)), groups, rotation=20 if long else 0, ha="right" if long else "center")
        for edge in range(1, len(groups)):
            axes.axvline(edge - 0.5, color="0.8", linewidth=0.8)

    return _plot(path, draw, y_label, title, len(series) > 1)


def plot_scatter(
    path: str | Path, points: Mapping[str, tuple[float, float]], x_label: str, y_label: str, title: str = ""
) -> bool:
    """Named points (x, y) as a PNG. Returns whether it was drawn."""

    def draw(axes: Any) -> None:
        for name, (x, y) in points.items():
            axes.plot([x], [y], marker="o", markersize=6, linestyle="none", label=name)
        axes.set_xlabel(x_label)
        axes.set_xlim(left=0)
        axes.margins(y=0.15)

    return _plot(path, draw, y_label, title, True)


def _plot(path: str | Path, draw: Any, y_label: str, title: str, legend: bool) -> bool:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{path}: not drawn, matplotlib is not installed", file=sys.stderr)
        return False
    figure = Figure(figsize=(6.4, 4.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    if legend:
        longest = max(map(len, axes.get_legend_handles_labels()[1]))
        columns = min(4, max(1, 680 // (6 * longest + 45)))  # that fit the figure's width, in pixels
        figure.legend(loc="outside lower center", ncols=columns, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return True

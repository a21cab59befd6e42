"""Shapes of tools/draw_method.py: cuboids, matrices, strips of channels, arrows, on a plain white canvas.

Lengths are in units of the canvas, 8 wide; sizes of text in points. The same calls give the same bytes.
"""

from collections.abc import Sequence
from math import cos, radians, sin
from pathlib import Path
from typing import Any

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Arc, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

COLORS = ("#2b6cb0", "#c8553d", "#3a8f5d", "#8a63a8")
GREY = "#8d949c"
INK = "#1f2933"
WIDTH = 8.4  # units shown
INCHES = 6.6  # width, so that 11 points stay legible on a telephone


def canvas(low: float, high: float = 9.1) -> tuple[Any, Any]:
    """A figure and its axes in units, x from -0.2 to 8.2, y from ``low`` to ``high``."""
    figure = Figure(figsize=(INCHES, INCHES * (high - low) / WIDTH), dpi=170, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-0.2, WIDTH - 0.2)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """A PNG without what changes from version to version of the library."""
    figure.savefig(path, format="png", metadata={"Software": None})


def tint(color: str, share: float) -> tuple[float, ...]:
    """A color mixed with white; ``share`` 1 is the color itself."""
    return tuple(1 - share * (1 - part) for part in to_rgb(color))


def title(axes: Any, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, fontsize=14, fontweight="bold", color=INK, ha="left", va="center")


def label(
    axes: Any, x: float, y: float, text: str, size: float = 11.5, align: str = "center", bold: bool = False
) -> None:
    style = {"fontweight": "bold" if bold else "normal", "linespacing": 1.35}
    place = "center" if "\n" in text else "center_baseline"
    axes.text(x, y, text, fontsize=size, color=INK, ha=align, va=place, **style)


def line(axes: Any, x0: float, y0: float, x1: float, y1: float) -> None:
    axes.plot([x0, x1], [y0, y1], color="0.8", linewidth=1)


def thread(axes: Any, x0: float, y0: float, x1: float, y1: float, color: str, width: float) -> None:
    """A line between two channels or points, below them."""
    axes.plot([x0, x1], [y0, y1], color=tint(color, 0.75), linewidth=width, zorder=1)


def arrow(axes: Any, x0: float, y0: float, x1: float, y1: float, color: str = INK) -> None:
    axes.add_patch(
        FancyArrowPatch(
            (x0, y0),
            (x1, y1),
            arrowstyle="-|>",
            mutation_scale=13,
            linewidth=1.6,
            color=color,
            zorder=4,
            shrinkA=0,
            shrinkB=0,
        )
    )


def cuboid(axes: Any, x: float, y: float, width: float, height: float, depth: float, color: str) -> None:
    """A box seen from the front left; ``depth`` goes back to the right."""
    dx, dy = 0.5 * depth, 0.35 * depth
    faces = (
        ([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], 0.35),
        ([(x, y + height), (x + width, y + height), (x + width + dx, y + height + dy), (x + dx, y + height + dy)], 0.2),
        ([(x + width, y), (x + width + dx, y + dy), (x + width + dx, y + height + dy), (x + width, y + height)], 0.55),
    )
    for corners, share in faces:
        axes.add_patch(Polygon(corners, facecolor=tint(color, share), edgecolor=color, linewidth=1.3, zorder=2))


def outer_product(axes: Any, x: float, y: float, index: str, color: str) -> None:
    """Three rods, one per mode, that meet in a corner."""
    cuboid(axes, x, y, 0.2, 1.0, 0.25, color)
    cuboid(axes, x + 0.4, y + 0.9, 1.0, 0.2, 0.25, COLORS[2])
    cuboid(axes, x + 0.45, y + 0.1, 0.2, 0.2, 1.7, COLORS[1])
    label(axes, x + 0.05, y - 0.25, f"$b_{index}$", 13)
    label(axes, x + 1.75, y + 0.98, f"$c_{index}$", 13)
    label(axes, x + 0.95, y + 0.02, f"$a_{index}$", 13)


def matrix(axes: Any, x: float, y: float, width: float, height: float, columns: int, rows: int, color: str) -> None:
    """A factor matrix as a grid."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=tint(color, 0.3), edgecolor=color, linewidth=1.3))
    for column in range(1, columns):
        axes.plot([x + width * column / columns] * 2, [y, y + height], color=color, linewidth=0.8)
    for row in range(1, rows):
        axes.plot([x, x + width], [y + height * row / rows] * 2, color=color, linewidth=0.8)


def factors(axes: Any, x: float, y: float, index: str, color: str) -> None:
    """The factor matrices A (I, R), B (Kh, R), C (Kw, R) of one filter, or of a layer, side by side."""
    for place, name, rows in ((x, "A", 5), (x + 0.75, "B", 3), (x + 1.5, "C", 3)):
        height = 0.17 * rows
        matrix(axes, place, y + 0.85 - height, 0.36, height, 2, rows, color)
        label(axes, place + 0.18, y - 0.18, f"${name}_{index}$" if index else f"${name}$")


def cells(axes: Any, places: Sequence[float], y: float, owners: Sequence[int | None]) -> None:
    """Channels side by side, each in its owner's color, those without one in white."""
    for place, owner in zip(places, owners, strict=True):
        fill, edge = ("white", GREY) if owner is None else (tint(COLORS[owner], 0.55), COLORS[owner])
        style = {"facecolor": fill, "edgecolor": edge, "linewidth": 1.4, "zorder": 3}
        axes.add_patch(Rectangle((place - 0.16, y - 0.16), 0.32, 0.32, **style))


def column(axes: Any, x: float, low: float, high: float, kept: bool) -> None:
    """The band behind one channel of all layers."""
    if kept:
        axes.add_patch(Rectangle((x - 0.2, low), 0.4, high - low, facecolor=tint(COLORS[0], 0.1), edgecolor="none"))
    else:
        axes.plot([x, x], [low, high], color=GREY, linewidth=0.8, linestyle=":", zorder=1)


def badge(axes: Any, x: float, y: float, text: str) -> None:
    """The name of a layer on the threads that it stands for."""
    axes.text(
        x,
        y,
        text,
        fontsize=12,
        color=INK,
        ha="center",
        va="center",
        zorder=5,
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "0.6"},
    )


def frame(axes: Any, x: float, y: float, width: float, height: float) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor="white", edgecolor="0.8", linewidth=1))


def point(axes: Any, x: float, y: float, name: str, kind: str) -> None:
    """A filter: it stays, is one of the closest pair, is dropped now, or is gone."""
    edge, fill, ink = {
        "stay": (COLORS[0], tint(COLORS[0], 0.25), INK),
        "pair": (COLORS[1], tint(COLORS[1], 0.25), INK),
        "drop": (COLORS[1], COLORS[1], "white"),
        "gone": ("0.8", "white", "0.7"),
    }[kind]
    axes.plot([x], [y], "o", markersize=19, markerfacecolor=fill, markeredgecolor=edge, markeredgewidth=1.4, zorder=3)
    axes.text(x, y, name, fontsize=11, color=ink, ha="center", va="center", zorder=4)


def angle(axes: Any, x: float, y: float, degrees: float, name: str, first: str, second: str) -> None:
    """Two subspaces, drawn as lines from one point, and the angle between them."""
    length = 1.75
    dx, dy = length * cos(radians(degrees)), length * sin(radians(degrees))
    axes.plot([x, x + length], [y, y], color=COLORS[0], linewidth=2.6, solid_capstyle="round")
    axes.plot([x, x + dx], [y, y + dy], color=COLORS[1], linewidth=2.6, solid_capstyle="round")
    axes.add_patch(Arc((x, y), 1.5, 1.5, theta1=0, theta2=degrees, color=INK, linewidth=1.4))
    middle = radians(degrees / 2)
    label(axes, x + 1.05 * cos(middle), y + 1.05 * sin(middle), name, 14)
    label(axes, x + length * 0.62, y - 0.22, first)
    label(axes, x + dx + 0.05, y + dy + 0.22, second)


def box(
    axes: Any,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    color: str,
    strong: bool = True,
    done: bool = False,
) -> None:
    """A rounded box with text; pale and dashed where it is not ``strong``, filled where it is ``done``."""
    share = 0.5 if done else 0.25 if strong else 0.06
    style = "solid" if strong or done else "dashed"
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            linewidth=1.6,
            linestyle=style,
            facecolor=tint(color, share),
            edgecolor=color,
            zorder=2,
        )
    )
    axes.text(
        x + width / 2,
        y + height / 2,
        text,
        fontsize=12.5,
        color=INK,
        ha="center",
        va="center",
        zorder=5,
        linespacing=1.6,
    )

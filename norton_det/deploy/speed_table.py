"""The table of a benchmark: models and forms, what they cost, how long they take."""

from collections.abc import Mapping, Sequence
from typing import Any


def speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, and below it the times of the parts.

    Args:
        rows: model, form, macs, params, bytes (``None``: not known), ms, p95, fps, vs_eager and vs_dense (ratios);
            parts (ms by name) and peak_mb where they were measured.
    """
    memory = any("peak_mb" in row for row in rows)
    heads = ["model", "form", "MACs G", "params M", "MB", "ms", "p95", "FPS", "vs eager", "vs dense"]
    lines = [f"| {' | '.join(heads + ['peak MB'] * memory)} |", f"| --- | --- |{' ---: |' * (8 + memory)}"]
    for row in rows:
        cells = [
            row["model"],
            row["form"],
            f"{row['macs'] / 1e9:.2f}",
            f"{row['params'] / 1e6:.2f}",
            "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}",
            f"{row['ms']:.1f}",
            f"{row['p95']:.1f}",
            f"{row['fps']:.2f}",
            "-" if row["vs_eager"] is None else f"{row['vs_eager']:.2f}x",
            f"{row['vs_dense']:.2f}x",
        ]
        cells += [f"{row['peak_mb']:.0f}" if "peak_mb" in row else "-"] * memory
        lines.append(f"| {' | '.join(cells)} |")
    timed = [row for row in rows if row.get("parts")]
    if timed:
        names = list(dict.fromkeys(name for row in timed for name in row["parts"]))
        lines += ["", f"| ms of parts | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
        for row in timed:
            cells = [f"{row['parts'][name]:.1f}" if name in row["parts"] else "-" for name in names]
            lines.append(f"| {row['model']}, {row['form']} | {' | '.join(cells)} |")
    return "\n".join(lines)

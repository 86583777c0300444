"""The loss of a run as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVE_NAME = "loss.png"


def draw_losses(log: Sequence[Mapping[str, Any]], folder: Path) -> Path | None:
    """Draw the losses of a trainer's log into `folder`; the picture's path, or None without matplotlib or losses."""
    series = {
        "train": [(row["step"], row["loss"]) for row in log if "loss" in row],
        "eval": [(row["step"], row["eval_loss"]) for row in log if "eval_loss" in row],
    }
    if not any(series.values()) or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for name, points in series.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    path = folder / CURVE_NAME
    figure.savefig(path, dpi=120)
    return path

"""A run's training curves: losses, learning rate and test metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import read_json_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette without its light yellow
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
DASHES = ("-", "--", ":", "-.")  # with the colors, twelve pairs before one repeats
METRICS = ("Rank-1", "mAP")

Curve = tuple[list[int], list[float]]
"""Iterations, and the values at them."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a run's metrics.json: one line per logged iteration."""
    if not path.exists():
        raise UserError(f"there is no {path}; name the folder of a training run: OUTPUT_DIR FOLDER")
    lines = []
    with explain_read_errors(path, "expected a run's metrics.json"):
        entries = read_json_lines(path)
    for number, (_, line) in enumerate(entries):
        if not _is_metrics(line):
            raise UserError(
                f"line {number + 1} of {path} is damaged; delete it, or go on with --resume"
            )
        lines.append(line)
    if not lines:
        raise UserError(f"{path} is empty: the run has not reached SOLVER.LOG_PERIOD iterations")
    return lines


def _is_metrics(line: Any) -> bool:
    """Whether a line has an iteration, and numbers where curves are drawn."""
    return (
        isinstance(line, dict)
        and isinstance(line.get("iteration"), int)
        and all(isinstance(line[name], int | float) for name in line if _choose_panel(name))
    )


def group_curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Group the curves by panel and name; a panel without curves is left out."""
    panels: dict[str, dict[str, Curve]] = {"loss": {}, "learning rate": {}, "percent": {}}
    for line in lines:
        for name, value in line.items():
            if panel := _choose_panel(name):
                iterations, values = panels[panel].setdefault(name, ([], []))
                iterations.append(line["iteration"])
                values.append(value)
    return {panel: curves for panel, curves in panels.items() if curves}


def _choose_panel(name: str) -> str:
    if name == "total_loss" or name.startswith("loss_"):
        return "loss"
    if name == "lr":
        return "learning rate"
    return "percent" if name.split("/")[-1] in METRICS else ""


def draw_curves(lines: Sequence[Mapping[str, Any]], title: str) -> Image.Image:
    """Draw the panels of :func:`group_curves` below one another, over one axis of iterations.

    >>> draw_curves(read_metrics(Path("logs/fed/metrics.json")), "FED").show()  # doctest: +SKIP
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = group_curves(lines)
    figure = Figure(figsize=(10, 1 + 2.8 * len(panels)), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title)
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (panel, curves) in zip(all_axes, panels.items(), strict=True):
        _draw_panel(axes, panel, curves)
    all_axes[-1].set_xlabel("iteration")
    figure.align_ylabels()
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _draw_panel(axes: Axes, panel: str, curves: Mapping[str, Curve]) -> None:
    styles = zip(cycle(DASHES), cycle(COLORS), strict=False)
    for name, (iterations, values) in sorted(curves.items()):
        if name == "total_loss":
            axes.plot(iterations, values, color="black", linewidth=2.5, label=name)
            continue
        dash, color = next(styles)
        # a single point, such as one evaluation, makes no line
        marker = "o" if panel == "percent" or len(values) == 1 else ""
        axes.plot(iterations, values, dash, color=color, marker=marker, label=name)
    if panel == "percent":
        axes.set_ylim(0, 100)
    elif spans_powers_of_ten(curves):
        axes.set_yscale("log")
    axes.set_ylabel(panel)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)


def spans_powers_of_ten(curves: Mapping[str, Curve]) -> bool:
    """Return whether a logarithmic scale is easier to read: all values positive, and far apart."""
    values = np.concatenate([values for _, values in curves.values()])
    values = values[np.isfinite(values)]
    return len(values) > 0 and bool(values.min() > 0 and values.max() > 10 * values.min())

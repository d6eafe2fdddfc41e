"""Charts of the report: training figures, points in the plane, latency against quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edgedistill.common.axes import log_scale
from edgedistill.common.files import read_json
from edgedistill.common.pictures import scatter
from edgedistill.reporting.embed import figure_uri
from edgedistill.training.metrics import read_metrics

__all__ = ["clouds", "curves", "tradeoff"]


def clouds(names: Sequence[str], drawn: Sequence[NDArray[Any]]) -> list[dict[str, str]]:
    """Plot each subject's points (N, D) over the first one's, on the same axes."""
    points = [each.astype(np.float32) for each in drawn]
    extent = 1.05 * max(float(np.abs(each).max()) for each in points)
    return [
        {"name": name, "picture": figure_uri(scatter(each, points[0], extent))}
        for name, each in zip(names, points, strict=True)
    ]


def curves(run: Path) -> str | None:
    """Plot training figures over steps, each in a panel."""
    lines = read_metrics(run)
    if len(lines) < 2:
        return None
    names = sorted({k for line in lines for k in line if k.count("/") == 1})
    names = [n for n in names if not n.endswith("/grad_norm")]
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.2 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, name in zip(panels, names, strict=False):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("training steps", fontsize=9)
    return figure_uri(figure)


def tradeoff(run: Path) -> str | None:
    """Plot FD against p50 of every subject that has both, if bundles are among them."""
    if not ((run / "bench.json").is_file() and (run / "eval.json").is_file()):
        return None
    times, figures = read_json(run / "bench.json"), read_json(run / "eval.json")
    points = {
        name: (1000 * times[name]["p50_s"], figures[name]["fd"])
        for name in times
        if isinstance(times[name], dict)
        and "p50_s" in times[name]
        and "fd" in (figures.get(name) or {})
    }
    if not any(name.startswith("bundle:") for name in points):
        return None
    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    axes = figure.subplots()
    # Subjects often lie close together, where labels at the points would overlap.
    for name, (milliseconds, fd) in points.items():
        label = f"{name}: {milliseconds:,.{milliseconds < 100:d}f} ms, FD {fd:.3g}"
        axes.plot(milliseconds, fd, "o" if ":" in name else "s", label=label)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    log_scale(axes)
    axes.set_ylim(0, 1.15 * max(fd for _, fd in points.values()))
    axes.margins(x=0.1)
    axes.set_xlabel("milliseconds a sample (p50, log scale)")
    axes.set_ylabel("FD")
    axes.spines[["top", "right"]].set_visible(False)
    return figure_uri(figure)

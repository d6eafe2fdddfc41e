"""Lays a chart out: sizes, colours, names of rows, and its panels below one another.

Lengths are in units of the SVG, which is WIDTH wide; a phone shows it at 0.9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from charts_panels import Panel, ours
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, TEXT, ROW, EDGE = 400, 12, 30, 8
INK, PALE = "#222222", "#dddddd"
OURS, OTHERS = "#1f63ad", "#c2651a"
SHADES = {
    True: {"text encoder": "#12365f", "middle": OURS, "decoder": "#8fbdec"},
    False: {"text encoder": "#6b340a", "middle": OTHERS, "decoder": "#f0b888"},
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgedistill",
    "font.family": "sans-serif",
    "font.size": TEXT,
    "text.color": INK,
    "axes.edgecolor": "#999999",
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
}


def color(name: str) -> str:
    """The colour of a subject."""
    return OURS if ours(name) else OTHERS


def shade(name: str, stage: str) -> str:
    """The colour of a stage of a subject."""
    if stage == "other":
        return "#999999"
    return SHADES[ours(name)].get(stage, SHADES[ours(name)]["middle"])


def label(name: str) -> str:
    """A subject in at most two lines, without what its colour says."""
    name = name.removeprefix("ours, ")
    cuts = [found.end() for found in re.finditer(r", ", name)]
    if len(name) <= 20 or not cuts:
        return name
    cut = min(cuts, key=lambda cut: max(cut, len(name) - cut))
    return f"{name[:cut].strip()}\n{name[cut:]}"


def key(figure: Figure, handles: Sequence[Artist], top: float) -> None:
    """Draw the key `top` units below the upper edge."""
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(EDGE / WIDTH, 1 - top / height(figure)),
        ncols=len(handles),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        columnspacing=1.1,
        handlelength=0.9,
        handletextpad=0.4,
    )


def height(figure: Figure) -> float:
    """The height in units."""
    return float(figure.get_figheight()) * 72


class Look(NamedTuple):
    """How the panels of a chart are drawn, and the room that they need, in units."""

    panel: Callable[[Axes, Panel], None]
    left: float = 130
    right: float = 60
    row: float = ROW
    axis: float = 4
    """Room below the panel, for ticks."""
    fixed: float = 0
    """The height of a panel; that of its rows if 0."""
    key: Callable[[Panel], Sequence[Artist]] = lambda _: ()
    keys: bool = False
    """Whether every panel has a key."""


def drawn(panels: Sequence[Panel], look: Look) -> Figure:
    """Draw the panels below one another."""
    head = 24
    with_key = [bool(look.key(panel)) and (look.keys or i == 0) for i, panel in enumerate(panels)]
    tall = [look.fixed or look.row * len(panel.rows) for panel in panels]
    total = EDGE + sum(head + 18 * k + h + look.axis for k, h in zip(with_key, tall, strict=True))
    figure = Figure(figsize=(WIDTH / 72, total / 72))
    top = float(EDGE)
    for panel, has_key, high in zip(panels, with_key, tall, strict=True):
        place = (EDGE / WIDTH, 1 - top / total)
        figure.text(*place, panel.title, va="top", ha="left", weight="bold", size=TEXT)
        top += head - 4
        if has_key:
            key(figure, look.key(panel), top)
            top += 18
        width = (WIDTH - look.left - look.right) / WIDTH
        axes = figure.add_axes((look.left / WIDTH, 1 - (top + high) / total, width, high / total))
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0)
        look.panel(axes, panel)
        top += high + look.axis + 4
    return figure

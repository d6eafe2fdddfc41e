"""Draws the kinds of panels: dots, bars, stacks, lines and marks, and their keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from charts_layout import INK, OTHERS, OURS, PALE, TEXT, color, height, label, shade
from charts_panels import GRAPH, GROWTH, WHOLE, Panel
from charts_tables import Value
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from edgedistill.common.axes import log_scale

MARKS = (("o", "#12365f"), ("s", "#4a90d9"), ("^", "#129382"))
BESIDE: Any = {
    "textcoords": "offset points",
    "ha": "right",
    "va": "center",
    "annotation_clip": False,
}


def named(axes: Axes, panel: Panel) -> None:
    """Give the axes a row for each subject, the first on top."""
    axes.set_yticks([])
    # One text a line: a reader's font has other widths, and only a text of one line has an anchor.
    for y, name in enumerate(panel.rows):
        texts = label(name).split("\n")
        for i, text in enumerate(texts):
            offset = (-5, 7 * (len(texts) - 1 - 2 * i))
            axes.annotate(
                text, (0, y), xycoords=("axes fraction", "data"), xytext=offset, **BESIDE
            )
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)


def end(axes: Axes, place: float, y: float, text: str) -> None:
    """Write the figure of a row behind its mark."""
    axes.annotate(
        text,
        (place, y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )


def whisker(axes: Axes, value: Value, y: float) -> None:
    """Draw the range of a figure."""
    if value.low < value.high:
        axes.plot([value.low, value.high], [y, y], color=INK, linewidth=1, solid_capstyle="butt")


def dots(axes: Axes, panel: Panel) -> None:
    """Draw a dot and its range in each row, on a logarithmic axis."""
    named(axes, panel)
    log_scale(axes)
    axes.margins(x=0.08)
    axes.grid(axis="x", color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    for y, (name, row) in enumerate(panel.rows.items()):
        (value,) = row.values()
        whisker(axes, value, y)
        axes.plot(value.middle, y, "o", color=color(name), markersize=6)
        end(axes, value.high, y, panel.ends[name])


def bars(axes: Axes, panel: Panel, line: float | None = None) -> None:
    """Draw a bar in each row, with its range; a second series is a stroke. `line`: one more."""
    named(axes, panel)
    axes.set_xticks([])
    axes.set_xlim(0, max(value.high for row in panel.rows.values() for value in row.values()))
    if line is not None:
        axes.axvline(line, color=INK, linewidth=0.8)
    for y, (name, row) in enumerate(panel.rows.items()):
        value, *more = row.values()
        axes.barh(y, value.middle, height=0.55, color=color(name))
        whisker(axes, value, y)
        for other in more:
            axes.plot([other.middle] * 2, [y - 0.38, y + 0.38], color=INK, linewidth=1.6)
        end(axes, max([line or 0, *(each.high for each in row.values())]), y, panel.ends[name])


def stacks(axes: Axes, panel: Panel) -> None:
    """Draw the stages of each row behind one another, and the range of their sum."""
    named(axes, panel)
    axes.set_xticks([])
    axes.set_xlim(0, max(row[WHOLE].high for row in panel.rows.values()))
    for y, (name, row) in enumerate(panel.rows.items()):
        at = 0.0
        for stage, value in row.items():
            if stage != WHOLE:
                axes.barh(y, value.middle, left=at, height=0.6, color=shade(name, stage))
                at += value.middle
        whisker(axes, row[WHOLE], y)
        end(axes, max(at, row[WHOLE].high), y, panel.ends[name])


def lines(axes: Axes, panel: Panel) -> None:
    """Draw a line for each row over the series, whose names are numbers; both axes double."""
    log_scale(axes)
    log_scale(axes, "y")
    axes.grid(color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    for name, row in panel.rows.items():
        x, y = [float(each) for each in row], [value.middle for value in row.values()]
        axes.plot(
            x,
            y,
            marker="o",
            markersize=4,
            color=color(name),
            linestyle=GROWTH[name],
            linewidth=1.8,
        )
    axes.set_xticks(x, [f"{each:g}" for each in x])
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    room = axes.get_position().height * height(figure)
    low, high = (math.log(each) for each in axes.get_ylim())
    ends = {}
    for name, row in panel.rows.items():
        value = [*row.values()][-1].middle
        ends[f"{label(name)} {value:g}"] = (math.log(value) - low) / (high - low) * room, name
    places = apart({text: place for text, (place, _) in ends.items()})
    for text, place in places.items():
        axes.annotate(
            text,
            (1, place / room),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            annotation_clip=False,
            va="center",
            color=color(ends[text][1]),
            size=TEXT - 1,
        )


def apart(places: Mapping[str, float], line: float = 13) -> dict[str, float]:
    """`places` of texts, moved until none overlaps another. Their mean stays where it was."""
    moved = dict[str, float]()
    least, before = -math.inf, 0
    for text in sorted(places, key=places.__getitem__):
        high = text.count("\n") + 1
        moved[text] = max(places[text], least + line * (before + high) / 2)
        least, before = moved[text], high
    mean = sum(moved[text] - places[text] for text in places) / len(places)
    return {text: place - mean for text, place in moved.items()}


def marks(axes: Axes, panel: Panel, goal: float | None = None, log: bool = False) -> None:
    """Draw a mark for each series of each row; `goal` is a line."""
    named(axes, panel)
    if log:
        log_scale(axes)
    axes.grid(axis="x", color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    if goal is not None:
        axes.axvline(goal, color=INK, linewidth=1)
        at = (goal, 1)
        place = {"xycoords": ("data", "axes fraction"), "xytext": (3, 1)}
        axes.annotate(
            "goal", at, **{**BESIDE, **place, "ha": "left", "va": "bottom"}, size=TEXT - 1
        )
    ends = [[v.middle for v in row.values()] for row in panel.rows.values()]
    axes.hlines(range(len(ends)), [*map(min, ends)], [*map(max, ends)], color=PALE, zorder=1)
    for which, (mark, paint) in zip(series(panel), MARKS, strict=True):
        at_row = enumerate(panel.rows.values())
        points = [(row[which].middle, y) for y, row in at_row if which in row]
        axes.plot(*zip(*points, strict=True), mark, color=paint, markersize=5, alpha=0.85)
    column = {"xycoords": ("axes fraction", "data"), "xytext": (8, 0), "ha": "left"}
    for y, text in enumerate(panel.ends.values()):
        axes.annotate(text, (1, y), **{**BESIDE, **column})


def series(panel: Panel) -> list[str]:
    """The names of the series of all rows, in their order."""
    return list(dict.fromkeys(name for row in panel.rows.values() for name in row))


def two_sides(panel: Panel) -> list[Artist]:
    """The key of ours and others."""
    return [Patch(color=OURS, label="ours"), Patch(color=OTHERS, label="others")]


def start_key(panel: Panel) -> list[Artist]:
    """The key of ours and others, and of the second series."""
    stroke = Line2D(
        [], [], marker="|", markersize=11, color=INK, linestyle="", label=series(panel)[1]
    )
    return [*two_sides(panel), stroke]


def stage_key(panel: Panel) -> list[Artist]:
    """The key of a panel's stages."""
    name = next(iter(panel.rows))
    known = [stage for stage in series(panel) if stage not in (WHOLE, GRAPH)]
    return [Patch(color=shade(name, stage), label=stage) for stage in known]


def mark_key(panel: Panel) -> list[Artist]:
    """The key of a panel's marks."""
    looks = zip(series(panel), MARKS, strict=True)
    return [
        Line2D([], [], marker=mark, color=paint, linestyle="", label=name)
        for name, (mark, paint) in looks
    ]

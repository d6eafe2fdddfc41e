"""Draws the charts of docs/results from the tables of its pages.

    python docs/charts.py    write them (python docs/generate.py does too)

A page shows a chart by an image such as `![what it shows](charts/speed-runtimes.svg)`. Its
figures are those of the first tables below the image, so that a chart cannot differ from its
table. A cell such as `12.7 (12.6..13.6)` has a median, the least and the largest. Every SVG has
the figures it was drawn from in its `<desc>`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from edgedistill.common.axes import log_scale

RESULTS = Path(__file__).parent / "results"
IMAGE = re.compile(r"!\[([^\]]*)\]\(charts/([\w.-]+)\)")

# Tables


class Value(NamedTuple):
    """A figure of a table, with the least and the largest (itself where only one is given)."""

    middle: float
    low: float
    high: float


class Row(NamedTuple):
    """A row of a table: its name (the first cell) and the other cells by their column."""

    name: str
    cells: Mapping[str, str]

    def value(self, column: str) -> Value:
        """The figure in `column`.

        Raises:
            ValueError: The table has no such column, or the cell does not begin with a number.
        """
        found = NUMBER.match(self.text(column).strip("* "))
        if not found:
            raise ValueError(f"row {self.name!r}, column {column!r}: no number begins the cell")
        middle, low, high = (float(part) if part else None for part in found.groups())
        return Value(middle, middle if low is None else low, middle if high is None else high)

    def text(self, column: str) -> str:
        """The cell in `column`."""
        if column not in self.cells:
            raise ValueError(f"no column {column!r}; there are {', '.join(self.cells)}")
        return self.cells[column]

    def first(self, column: str) -> str:
        """The first word of the cell in `column`, as it is written."""
        return self.text(column).strip("* ").split()[0]


NUMBER = re.compile(r"(\d*\.?\d+)(?: \((\d*\.?\d+)\.\.(\d*\.?\d+)\))?")


def tables(text: str) -> list[list[Row]]:
    """Every Markdown table in `text`, without spans of code."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        heads, _, *rows = [[cell.replace("`", "") for cell in line] for line in lines]
        named = [Row(cells[0], dict(zip(heads[1:], cells[1:], strict=True))) for cells in rows]
        found.append(named)
    return found


def below(page: str, name: str) -> list[list[Row]]:
    """The tables from the image of the chart `name` to the next heading of the page."""
    start = next(found.end() for found in IMAGE.finditer(page) if found[2] == name)
    return tables(re.split(r"^#", page[start:], maxsplit=1, flags=re.M)[0])


# What a chart shows


class Panel(NamedTuple):
    """One part of a chart: the figures of every row, by series, and the text at the row's end."""

    title: str
    rows: Mapping[str, Mapping[str, Value]]
    ends: Mapping[str, str]


Tables = Sequence[Sequence[Row]]
WHOLE = "in all"
"""The series of a stack's sum, whose range is drawn."""
GRAPH = "one graph"
"""The series of stages that are not told apart."""


def ours(name: str) -> bool:
    """Whether a subject is a bundle or a recipe of ours."""
    return name.startswith(("ours", "openvino-", "ort-", "web-", "emoji-"))


def by_name(rows: Iterable[Row]) -> dict[str, Row]:
    """The rows by their names."""
    return {row.name: row for row in rows}


def one(rows: Mapping[str, Row], name: str) -> Row:
    """The row of a name.

    Raises:
        ValueError: There is none.
    """
    if name not in rows:
        raise ValueError(f"no row {name!r}; there are {', '.join(rows)}")
    return rows[name]


def column_panel(rows: Iterable[Row], title: str, series: Mapping[str, str]) -> Panel:
    """The panel of some columns, by the name of their series, of the rows that have them all."""
    rows = [row for row in rows if all(row.text(column) for column in series.values())]
    return Panel(
        title,
        {row.name: {name: row.value(column) for name, column in series.items()} for row in rows},
        {row.name: ", ".join(row.first(column) for column in series.values()) for row in rows},
    )


def runtimes(found: Tables) -> list[Panel]:
    """The time of a picture in every runtime."""
    return [column_panel(found[0], "Milliseconds a picture (log scale)", {"": "ms"})]


def start(found: Tables) -> list[Panel]:
    """The seconds of a process to its first picture."""
    series = {"what is compiled is kept": "s", "nothing kept": "s, nothing kept"}
    return [column_panel(found[0], "Seconds from start to first picture", series)]


def web(found: Tables) -> list[Panel]:
    """A picture, the first picture and loading in onnxruntime-web."""
    titles = {
        "ms": "Milliseconds a picture",
        "first ms": "Milliseconds, first picture",
        "load s": "Seconds to load",
    }
    return [column_panel(found[0], title, {"": column}) for column, title in titles.items()]


def training(found: Tables) -> list[Panel]:
    """The training speed over an earlier commit's."""
    title = "Training steps a second, over an earlier commit's"
    return [column_panel(found[0], title, {"": "ratio"})]


def split(rows: Mapping[str, Mapping[str, Value]], ends: Mapping[str, str]) -> list[Panel]:
    """Two panels, each on a scale of its own: diffusers and ours."""
    titles = {False: "diffusers", True: "ours (another scale)"}

    def subject(name: str) -> str:
        return name.removesuffix(", diffusers")

    return [
        Panel(
            title,
            {subject(name): row for name, row in rows.items() if ours(name) is which},
            {subject(name): end for name, end in ends.items() if ours(name) is which},
        )
        for which, title in titles.items()
    ]


def emoji_stages(found: Tables) -> list[Panel]:
    """The stages of an emoji picture, milliseconds."""
    stages = ("text encoder", "denoiser", "decoder")
    rows, ends = {}, {}
    for row in found[0]:
        ends[row.name] = f"{row.first('ms')} ms"
        whole, other = row.value("ms"), row.value("other")
        if row.text("denoiser"):
            parts = {stage: row.value(stage) for stage in stages}
        else:
            rest = round(whole.middle - other.middle, 3)
            parts = {GRAPH: Value(rest, rest, rest)}
            ends[row.name] += f", {GRAPH}"
        rows[row.name] = {**parts, "other": other, WHOLE: whole}
    return split(rows, ends)


def large_stages(found: Tables) -> list[Panel]:
    """The stages of a picture at Stable Diffusion 1.5's size, seconds.

    Raises:
        ValueError: The stages of the first table do not add up to a picture of the second.
    """
    stages = by_name(found[0])
    rows = {}
    for row in found[1]:
        whole = row.value("s")
        parts = large_parts(row.name, stages)
        total = sum(part.middle for part in parts.values())
        if abs(total / whole.middle - 1) > 0.03:
            raise ValueError(f"{row.name!r}: stages of {total:.4g} s, {whole.middle:g} in all")
        rows[row.name] = {**parts, WHOLE: whole}
    factor = "times as fast as the teacher"
    return split(rows, {row.name: f"{row.first('s')} s, {row.first(factor)}x" for row in found[1]})


REUSED = re.compile(r"(\d+) of (outer blocks|last layer)")
"""Steps of a subject that call a part of its U-Net only."""


def large_parts(subject: str, stages: Mapping[str, Row]) -> dict[str, Value]:
    """Seconds of each stage of a subject such as `ours, 4 steps, int8 U-Net, tiny decoder`."""
    steps = re.search(r"(\d+) (?:guided )?steps?", subject)
    if not steps:
        raise ValueError(f"{subject!r} does not say its steps")
    plain = "diffusers, fp32, ms" if "diffusers" in subject else "bf16, ms"
    small, reused = re.search(r"BK-SDM-\w+", subject), REUSED.search(subject)
    if small:
        unet, column = f"U-Net of {small[0]}", "int8, ms"
    elif "guided" in subject:
        unet, column = "U-Net, guided (a batch of 2)", plain
    else:
        unet, column = "U-Net", "int8, ms" if "int8 U-Net" in subject else plain
    if "at stride 2" in subject:
        unet += " at stride 2"
    decoder = "tiny decoder (TAESD)" if "tiny decoder" in subject else "VAE decoder"
    shallow = int(reused[1]) if reused else 0
    calls = {
        "text encoder": [("text encoder", plain, 0 if "same prompt" in subject else 1)],
        "U-Net": [(unet, column, int(steps[1]) - shallow)],
        "decoder": [(decoder, "int8, ms" if "int8 tiny" in subject else plain, 1)],
    }
    if reused:
        calls["U-Net"].append((f"U-Net, {reused[2]}", column, shallow))
    return {name: total(found, stages) for name, found in calls.items()}


def total(calls: Iterable[tuple[str, str, int]], stages: Mapping[str, Row]) -> Value:
    """Seconds of calls: (stage, column of its milliseconds, how many)."""
    each = [
        [count * number for number in one(stages, stage).value(column)]
        for stage, column, count in calls
    ]
    return Value(*(round(sum(numbers) / 1000, 4) for numbers in zip(*each, strict=True)))


GROWTH = {
    "openvino-int8": "-",
    "openvino-int8-fused": ":",
    "ort-int8": "--",
    "OpenVINO GenAI, its own precision": "-",
    "optimum, ONNX Runtime": "--",
    "diffusers": "-.",
}
"""The rows of the table that are drawn, with their strokes. All ten would hide one another."""


def growth(found: Tables) -> list[Panel]:
    """The time of a picture over the pictures a call, and over the steps (4 in the first)."""
    named = by_name(found[0])
    rows = [one(named, name) for name in GROWTH]
    batch = {"1": "1 picture", "2": "2", "4": "4", "8": "8"}
    steps = {"1": "1 step", "2": "2 steps", "4": "1 picture", "8": "8 steps"}
    return [
        column_panel(rows, "Milliseconds a picture, over pictures a call", batch),
        column_panel(rows, "Milliseconds a picture, over steps", steps),
    ]


def emoji_methods(found: Tables) -> list[Panel]:
    """FD of every method on emoji, at 4, 2 and 1 steps."""
    counts = list(dict.fromkeys(row.text("steps") for row in found[0]))
    names = list(dict.fromkeys(row.name for row in found[0]))
    cells = {(row.name, row.text("steps")): row for row in found[0]}
    rows, ends = {}, {}
    for name in names:
        told = {n: cells[name, n] for n in counts if (name, n) in cells}
        short = name.removeprefix("emoji-")
        rows[short] = {f"{n} step{'s' * (n != '1')}": row.value("FD") for n, row in told.items()}
        ends[short] = ", ".join(told[n].first("FD") if n in told else "-" for n in counts)
    return [Panel("FD on trained captions (less is better)", rows, ends)]


MIXTURES = ("ring", "grid", "clusters")


def mixture_methods(found: Tables) -> list[Panel]:
    """Floors of every method on the three mixtures, those of the worst at the end."""
    panels = []
    for steps, title in (
        ("4", "In 4 steps: floors (log scale), worst at right"),
        ("1", "In one step"),
    ):
        rows = {
            row.name.removeprefix("mixture-"): row
            for row in found[0]
            if row.text("steps") == steps
        }
        floors = {name: {m: row.value(m) for m in MIXTURES} for name, row in rows.items()}
        worst = {name: max(row, key=row.__getitem__) for name, row in floors.items()}
        ends = {name: row.first(worst[name]) for name, row in rows.items()}
        panels.append(Panel(title, floors, ends))
    return panels


# Drawing. Lengths are in units of the SVG, which is WIDTH wide; a phone shows it at 0.9.

WIDTH, TEXT, ROW, EDGE = 400, 12, 30, 8
INK, PALE = "#222222", "#dddddd"
OURS, OTHERS = "#1f63ad", "#c2651a"
SHADES = {
    True: {"text encoder": "#12365f", "middle": OURS, "decoder": "#8fbdec"},
    False: {"text encoder": "#6b340a", "middle": OTHERS, "decoder": "#f0b888"},
}
MARKS = (("o", "#12365f"), ("s", "#4a90d9"), ("^", "#129382"))
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


BESIDE: Any = {
    "textcoords": "offset points",
    "ha": "right",
    "va": "center",
    "annotation_clip": False,
}


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
        title = {"va": "top", "ha": "left", "weight": "bold", "size": TEXT}
        figure.text(EDGE / WIDTH, 1 - top / total, panel.title, **title)
        top += head - 4
        if has_key:
            key(figure, look.key(panel), top)
            top += 18
        width = (WIDTH - look.left - look.right) / WIDTH
        place = (look.left / WIDTH, 1 - (top + high) / total, width, high / total)
        axes = figure.add_axes(place)
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0)
        look.panel(axes, panel)
        top += high + look.axis + 4
    return figure


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
    offset = {"xytext": (5, 0), "textcoords": "offset points"}
    axes.annotate(text, (place, y), va="center", annotation_clip=False, **offset)


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
        style = {"color": color(name), "linestyle": GROWTH[name], "linewidth": 1.8}
        axes.plot(x, y, marker="o", markersize=4, **style)
    axes.set_xticks(x, [f"{each:g}" for each in x])
    room = axes.get_position().height * height(axes.get_figure())
    low, high = (math.log(each) for each in axes.get_ylim())
    ends = {}
    for name, row in panel.rows.items():
        value = [*row.values()][-1].middle
        ends[f"{label(name)} {value:g}"] = (math.log(value) - low) / (high - low) * room, name
    places = apart({text: place for text, (place, _) in ends.items()})
    for text, place in places.items():
        style = {"va": "center", "color": color(ends[text][1]), "size": TEXT - 1}
        axes.annotate(
            text,
            (1, place / room),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            annotation_clip=False,
            **style,
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


class Chart(NamedTuple):
    """How a chart is read from tables and drawn."""

    read: Callable[[Tables], list[Panel]]
    look: Look


FLOORS = Look(partial(marks, goal=2, log=True), left=160, right=50, row=15, axis=20, key=mark_key)

CHARTS = {
    "speed-runtimes.svg": Chart(runtimes, Look(dots, right=44, axis=20, key=two_sides)),
    "speed-start.svg": Chart(start, Look(bars, left=134, right=84, key=start_key)),
    "speed-web.svg": Chart(web, Look(bars, key=two_sides)),
    "speed-sd15-stages.svg": Chart(
        large_stages, Look(stacks, left=206, right=100, key=stage_key, keys=True)
    ),
    "speed-emoji-stages.svg": Chart(
        emoji_stages, Look(stacks, left=136, right=92, key=stage_key, keys=True)
    ),
    "speed-growth.svg": Chart(
        growth, Look(lines, left=36, right=156, axis=20, fixed=190, key=two_sides)
    ),
    "speed-training.svg": Chart(training, Look(partial(bars, line=1))),
    "emoji-methods.svg": Chart(
        emoji_methods, Look(marks, left=116, right=120, row=16, axis=20, key=mark_key)
    ),
    "mixtures-path.svg": Chart(mixture_methods, FLOORS),
    "mixtures-matching.svg": Chart(mixture_methods, FLOORS),
}
"""File in docs/results/charts -> the chart. The page that shows it is found by its image."""


# Files


def page_of(name: str, results: Path = RESULTS) -> Path:
    """The page that shows a chart.

    Raises:
        ValueError: No page shows it, or more than one does.
    """
    found = [
        page
        for page in sorted(results.glob("*.md"))
        for image in IMAGE.finditer(page.read_text(encoding="utf-8"))
        if image[2] == name
    ]
    if len(found) != 1:
        raise ValueError(f"charts/{name} is shown {len(found)} times in docs/results, not once")
    return found[0]


def panels_of(name: str, results: Path = RESULTS) -> list[Panel]:
    """What the chart shows, by the tables of its page.

    Raises:
        ValueError: The tables below its image are not those that the chart is made of.
    """
    page = page_of(name, results)
    try:
        return CHARTS[name].read(below(page.read_text(encoding="utf-8"), name))
    except IndexError as error:
        raise ValueError(f"{page.name}, below charts/{name}: a table is missing") from error
    except ValueError as error:
        raise ValueError(f"{page.name}, below charts/{name}: {error}") from error


def figures(panels: Sequence[Panel]) -> str:
    """All figures of a chart, a row a line."""
    rows = []
    for panel in panels:
        rows.append(panel.title)
        for name, row in panel.rows.items():
            told = "; ".join(f"{each} {written(value)}".strip() for each, value in row.items())
            rows.append(f"{name}: {told} [{panel.ends.get(name, '')}]")
    return "\n".join(rows)


VERSION = f"matplotlib {mpl.__version__}"
"""Another version may draw the same figures by other bytes."""


def written(value: Value) -> str:
    """A figure as a table has it."""
    middle, low, high = (f"{each:g}" for each in value)
    return middle if low == high else f"{middle} ({low}..{high})"


def svg(name: str, panels: Sequence[Panel]) -> str:
    """The SVG of a chart. Text stays text, in the reader's sans serif."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure = drawn(panels, CHARTS[name].look)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue().decode()
    text = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "Arial, Helvetica, sans-serif", text)
    # What no reader needs: a third of the file.
    text = re.sub(r" <metadata>.*?</metadata>\n", "", text, flags=re.S)
    text = re.sub(r" <defs>\s*<clipPath.*?</defs>\n", "", text, flags=re.S)
    text = re.sub(r' clip-path="[^"]*"', "", text)
    text = re.sub(r'^ *<g id="[^"]*"(?:/>|>\s*</g>)\n', "", text, flags=re.M)
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    told = f"<title>{escape(panels[0].title)}</title>\n <desc>{escape(figures(panels))}</desc>"
    told += f"\n <!-- {VERSION} -->"
    return re.sub(r"(<svg [^>]*>)", lambda found: f"{found[1]}\n {told}", text, count=1)


def described(text: str) -> str:
    """The figures that an SVG was drawn from."""
    found = ElementTree.fromstring(text).find("{http://www.w3.org/2000/svg}desc")  # noqa: S314  our own file
    return found.text or "" if found is not None else ""


def stale(results: Path = RESULTS) -> list[str]:
    """Names of the charts that are missing or show other figures than their tables."""
    old = []
    for name in CHARTS:
        file = results / "charts" / name
        told = described(file.read_text(encoding="utf-8")) if file.is_file() else ""
        if told != figures(panels_of(name, results)):
            old.append(name)
    return old


def write(results: Path = RESULTS) -> None:
    """Write every chart."""
    (results / "charts").mkdir(exist_ok=True)
    for name in CHARTS:
        text = svg(name, panels_of(name, results))
        (results / "charts" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()

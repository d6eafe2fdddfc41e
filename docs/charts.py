"""Draws the charts of docs/results from the tables of its pages.

    python docs/charts.py    write them (python docs/generate.py does too)

A page shows a chart by an image such as `![what it shows](charts/speed-runtimes.svg)`. Its
figures are those of the first tables below the image, so that a chart cannot differ from its
table. Every SVG has the figures it was drawn from in its `<desc>`.

This file has the list of charts and writes them. `charts_tables.py` reads tables,
`charts_panels.py` chooses the figures that each chart shows, `charts_layout.py` has sizes and
colours, and `charts_kinds.py` draws dots, bars, stacks, lines and marks.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
from charts_kinds import (
    bars,
    dots,
    lines,
    mark_key,
    marks,
    stacks,
    stage_key,
    start_key,
    two_sides,
)
from charts_layout import STYLE, Look, drawn
from charts_panels import (
    Panel,
    emoji_methods,
    emoji_stages,
    growth,
    large_stages,
    mixture_methods,
    runtimes,
    start,
    training,
    web,
)
from charts_tables import IMAGE, Tables, Value, below
from matplotlib import style

RESULTS = Path(__file__).parent / "results"


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
    with style.context(STYLE):
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

"""The tables of `peers.py`: subjects in turns, medians, ratios, and reasons of what failed."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

PRECISIONS = ("fp32", "bf16", "int8")

Figures = Mapping[str, Any]


class Failed(Exception):  # noqa: N818  it is an outcome of a subject
    """A subject cannot be measured; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What one process measures.

    Attributes:
        name: Its name in tables.
        command: The process's, which takes --json FILE.
        ours: Whether others are compared with it.
        reason: Why it cannot run, if that is known before.
    """

    name: str
    command: tuple[str, ...] = ()
    ours: bool = False
    reason: str = ""

    def asked(self, *options: object) -> Subject:
        """Return this subject with further options."""
        return replace(self, command=(*self.command, *map(str, options)))


@dataclass
class Outcome:
    """Figures of a subject, one for each round, or the reason why there are none."""

    figures: list[Figures] = field(default_factory=list)
    reason: str = ""

    def values(self, path: Sequence[str]) -> list[float]:
        """Return the number at a path of keys in each round's figures; [] if one has none."""
        found: list[float] = []
        for figures in self.figures:
            value: Any = figures
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is None:
                return []
            found.append(float(value))
        return found


@dataclass(frozen=True)
class Column:
    """A column of figures: its heading, their path and a factor to its unit."""

    heading: str
    path: tuple[str, ...]
    factor: float = 1000.0


def take_turns(
    subjects: Sequence[Subject], rounds: int, measure: Callable[[Subject], Figures]
) -> dict[str, Outcome]:
    """Measure subjects in turns; one that failed is not tried again."""
    outcomes = {subject.name: Outcome(reason=subject.reason) for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            outcome = outcomes[subject.name]
            if outcome.reason:
                continue
            print(f"  {subject.name}", file=sys.stderr, flush=True)
            try:
                outcome.figures.append(measure(subject))
            except Failed as error:
                outcome.reason, outcome.figures = str(error) or "failed", []
    return outcomes


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float], factor: float = 1.0) -> str:
    """Median (least..largest); "-" for no values."""
    if not values:
        return "-"
    middle, *ends = (
        number(factor * value) for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({'..'.join(ends)})"


def ratio(values: Sequence[float], reference: Sequence[float]) -> str:
    """Median over median; "-" if one has no values."""
    if not values or not reference:
        return "-"
    return f"{statistics.median(values) / statistics.median(reference):.2f}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; short rows are filled."""
    filled = [[*row, *[""] * (len(headings) - len(row))] for row in rows]
    lines = [headings, ["---"] * len(headings), *filled]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def table(outcomes: Mapping[str, Outcome], columns: Sequence[Column], ours: Sequence[str]) -> str:
    """A line for each subject: its figures, then those of the first column over each of ours."""
    first = columns[0].path
    known = [name for name in ours if outcomes[name].values(first)]
    rows = []
    for name, outcome in outcomes.items():
        if outcome.reason:
            rows.append([name, outcome.reason])
            continue
        cells = [spread(outcome.values(c.path), c.factor) for c in columns]
        against = [ratio(outcome.values(first), outcomes[one].values(first)) for one in known]
        rows.append([name, *cells, *against])
    headings = ["subject", *(c.heading for c in columns), *(f"x {name}" for name in known)]
    return markdown(headings, rows)


def wide_table(settings: Mapping[str, Mapping[str, Outcome]], ours: Sequence[str]) -> str:
    """A column for each setting: ms a picture, and that over the fastest of ours."""
    path, rows, reasons = ("picture_s",), [], []
    for name in next(iter(settings.values())):
        row = [name]
        for setting, outcomes in settings.items():
            values, own = outcomes[name].values(path), [outcomes[o].values(path) for o in ours]
            best = min((o for o in own if o), key=statistics.median, default=[])
            row.append(f"{spread(values, 1000)}, {ratio(values, best)}x" if values else "-")
            if outcomes[name].reason:
                reasons.append(f"- {name}, {setting}: {outcomes[name].reason}")
        rows.append(row)
    return markdown(["subject", *settings], rows) + "".join(f"\n{line}" for line in reasons)


def share_table(
    outcomes: Mapping[str, Outcome], work: Mapping[str, float], graphs: Sequence[str]
) -> str:
    """A line for each graph and precision: its time and rate, and its share of the products' rate.

    Args:
        outcomes: Outcomes of "GRAPH PRECISION".
        work: GFLOP of a call by graph.
        graphs: Graphs that are compared with "products".
    """
    rows = []
    for graph, precision in product(graphs, PRECISIONS):
        name = f"{graph} {precision}"
        if name not in outcomes:
            continue
        own, chain = outcomes[name], outcomes[f"products {precision}"]
        if reason := own.reason or chain.reason:
            rows.append([name, reason])
            continue
        times = own.values(("p50_s",))
        rate = [work[graph] / seconds for seconds in times]
        peak = [work["products"] / seconds for seconds in chain.values(("p50_s",))]
        rows.append([name, spread(times), spread(rate), spread(peak), ratio(rate, peak)])
    return markdown(["ours", "s a call", "GFLOP/s", "peak GFLOP/s", "share reached"], rows)


def chain_table(outcomes: Mapping[str, Outcome], chains: Mapping[str, Mapping[str, int]]) -> str:
    """A line for each chain of calls: its seconds, and how often they fit into the first chain's.

    Args:
        outcomes: Outcomes by name; a round's seconds are those of the calls in the same round.
        chains: How often a chain calls each.
    """
    totals: dict[str, list[float]] = {}
    rows = []
    for name, calls in chains.items():
        reasons = [outcomes[one].reason for one in calls if outcomes[one].reason]
        if reasons:
            rows.append([name, reasons[0]])
            continue
        rounds = zip(*(outcomes[one].values(("p50_s",)) for one in calls), strict=True)
        totals[name] = [
            sum(n * s for n, s in zip(calls.values(), taken, strict=True)) for taken in rounds
        ]
        first = totals.get(next(iter(chains)), [])
        rows.append([name, spread(totals[name]), ratio(first, totals[name]) if first else "-"])
    return markdown(["one picture", "s", "times as fast as the first"], rows)

"""Runs of a folder side by side: quality against speed, and which of them no other beats in both.

A subject is on the Pareto front if no other one is at least as fast and at least as good, and
better in one of the two. Only figures of one teacher, one measure and one number of samples are
compared, since FD falls with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from edgedistill.common.axes import log_scale
from edgedistill.common.files import check_writable, read_json, write_text
from edgedistill.common.progress import visible_lines
from edgedistill.evaluation.tables import heading, subjects_of
from edgedistill.reporting.embed import figure_uri
from edgedistill.reporting.verdict import milliseconds

__all__ = ["Entry", "Scope", "compare_runs", "front", "groups_of", "is_folder_of_runs", "table"]

MEASURES = ("fd", "sliced_w2")
"""Figures of quality, of which lower is better; the first that a subject has counts."""

TEACHER = "teacher"
"""Start of the names of the teacher's rows, which every run has."""


class Scope(NamedTuple):
    """The teacher, measure and number of samples that comparable entries share."""

    teacher: str
    measure: str
    samples: int

    @property
    def title(self) -> str:
        return f"{self.teacher}: {heading(self.measure)} of {self.samples} samples"


@dataclass(frozen=True)
class Entry:
    """One subject of one run, with its figures.

    Attributes:
        run: Name of the run; empty for the teacher.
        subject: Name of the subject in eval.json, such as "student" or "bundle:ort-fp32".
        method: Method of the student.
        calls: Network calls of one sample.
        quality: Distance; lower is better.
        interval: Half its 95 % interval, where it is known.
        seconds: Median seconds of one sample, where they were measured.
        machine: Processor that they were measured on.
    """

    run: str
    subject: str
    method: str
    calls: int
    quality: float
    interval: float | None
    seconds: float | None
    machine: str

    @property
    def name(self) -> str:
        return f"{self.run} {self.subject}".strip()


def is_folder_of_runs(folder: Path) -> bool:
    """Return whether a folder has runs in it and is not a run or a student itself."""
    own = ("student.json", "student", "students", "recipe.yaml")
    return not any((folder / name).exists() for name in own) and any(_runs(folder))


def _runs(folder: Path) -> Iterator[Path]:
    for student in sorted(folder.glob("*/student/student.json")):
        if not student.parents[1].is_symlink():  # `latest` is one of the others
            yield student.parents[1]


def groups_of(folder: Path) -> tuple[dict[Scope, list[Entry]], list[str]]:
    """Read the figures of all runs in a folder.

    Args:
        folder: A folder of run dirs.

    Returns:
        Entries by group, the teacher's rows once, and names of the runs without figures.
    """
    groups: dict[Scope, dict[str, Entry]] = {}
    without = []
    for run in _runs(folder):
        try:
            found = list(_entries(run))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{run}: not as distill and evaluate write it: {error!r}") from None
        if not found:
            without.append(run.name)
        for group, entry in found:
            there = groups.setdefault(group, {})
            if entry.name not in there or entry.seconds is not None:
                there[entry.name] = entry
    return {group: list(there.values()) for group, there in groups.items()}, without


def _entries(run: Path) -> Iterator[tuple[Scope, Entry]]:
    info = read_json(run / "student" / "student.json")
    figures, times = (
        read_json(run / name) if (run / name).is_file() else {}
        for name in ("eval.json", "bench.json")
    )
    machine = str((times.get("machine") or {}).get("processor", ""))
    for subject, row in subjects_of(figures).items():
        measure = next((name for name in MEASURES if row.get(name) is not None), None)
        if measure is None:
            continue
        taken = times.get(subject)
        seconds = taken.get("p50_s") if isinstance(taken, Mapping) else None
        shared = subject.startswith(TEACHER)
        yield (
            Scope(str(info["teacher"].get("name") or "teacher"), measure, int(row["samples"])),
            Entry(
                run="" if shared else run.name,
                subject=subject,
                method="" if shared else str(info["method"]),
                calls=int(row["calls"]),
                quality=float(row[measure]),
                interval=(row.get("spread") or {}).get(f"{measure}_interval"),
                seconds=seconds,
                machine=machine,
            ),
        )


def front(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries that no other one beats in speed and quality, the fastest first."""
    timed = [(entry.seconds, entry.quality, entry) for entry in entries if entry.seconds]
    best: list[Entry] = []
    for _, quality, entry in sorted(timed, key=lambda each: each[:2]):
        if not best or quality < best[-1].quality:
            best.append(entry)
    return best


def table(group: Scope, entries: Sequence[Entry]) -> Table:
    """Make the table of a group for a terminal; * marks the Pareto front."""
    shown = Table(title=group.title, box=None, header_style="bold", title_justify="left")
    shown.add_column("", no_wrap=True)
    for name in ("run", "subject"):
        shown.add_column(name)
    for name in ("calls", "ms", heading(group.measure)):
        shown.add_column(name, justify="right")
    for cells in rows(entries):
        shown.add_row(*map(Text, cells))
    return shown


def rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Return (mark, run, subject, calls, ms, quality) as text, the best first."""
    best = front(entries)
    return [
        (
            "*" if entry in best else "",
            entry.run,
            entry.subject,
            str(entry.calls),
            "-" if entry.seconds is None else milliseconds(entry.seconds),
            f"{entry.quality:.3g}"
            + ("" if entry.interval is None else f" \u00b1 {entry.interval:.2g}"),
        )
        for entry in sorted(entries, key=lambda entry: entry.quality)
    ]


def chart(group: Scope, entries: Sequence[Entry]) -> str | None:
    """Plot quality against milliseconds; None if fewer than two subjects were timed."""
    timed = [entry for entry in entries if entry.seconds]
    if len(timed) < 2:
        return None
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    best = front(timed)
    steps = [(1000 * (entry.seconds or 0), entry.quality) for entry in best]
    axes.step(*zip(*steps, strict=True), where="post", color="0.6", linewidth=1, zorder=0)
    for entry in sorted(timed, key=lambda entry: entry.quality):
        marker = "s" if entry.subject.startswith(TEACHER) else "o"
        place = (1000 * (entry.seconds or 0), entry.quality)
        fill = None if entry in best else "none"
        axes.errorbar(
            *place, yerr=entry.interval, fmt=marker, label=entry.name, markerfacecolor=fill
        )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    log_scale(axes)
    axes.set_ylim(0, 1.15 * max(entry.quality + (entry.interval or 0) for entry in timed) or 1)
    axes.set_xlabel("milliseconds a sample (p50, log scale)")
    axes.set_ylabel(heading(group.measure))
    axes.spines[["top", "right"]].set_visible(False)
    return figure_uri(figure)


def compare_runs(folder: Path, out: Path) -> tuple[list[Table], list[str]]:
    """Write one page with a chart and a table for each group of comparable figures.

    Args:
        folder: A folder of run dirs, such as `runs`.
        out: The page.

    Returns:
        The tables, for a terminal, and lines that say what is left to know.

    Raises:
        ValueError: If no run has an eval.json; says how to make one.
    """
    check_writable(out, str(out))
    groups, without = groups_of(folder)
    if not groups:
        raise ValueError(f"{folder}: no run has figures; run edgedistill evaluate, and bench")
    environment = Environment(
        loader=PackageLoader("edgedistill.reporting"),
        autoescape=select_autoescape(),
        finalize=visible_lines,
    )
    sections = [
        {
            "title": group.title,
            "head": heading(group.measure),
            "chart": chart(group, entries),
            "rows": rows(entries),
            "machines": sorted({e.machine for e in entries if e.seconds and e.machine}),
            "front": [entry.name for entry in front(entries)],
        }
        for group, entries in groups.items()
    ]
    page = environment.get_template("compared.html").render(
        folder=folder.name, sections=sections, without=without
    )
    write_text(out, page)
    return [table(group, entries) for group, entries in groups.items()], _notes(groups, without)


def _notes(groups: Mapping[Scope, Sequence[Entry]], without: Sequence[str]) -> list[str]:
    """Say what a * is, where there is one, and which runs are not in the tables."""
    found = []
    if any(front(entries) for entries in groups.values()):
        found.append(
            "* on the Pareto front: no other row of its table is at least as fast and as good"
        )
    else:
        found.append("no subject was timed: run edgedistill bench")
    if without:
        found.append(f"without figures: {', '.join(without)}; run edgedistill evaluate")
    return found

"""Tables and lines of the figures in eval.json for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from edgedistill.common.decibels import decibels

__all__ = ["TITLES", "cell", "heading", "notes", "sections", "subjects_of", "tables"]

TITLES = {
    "seen": "captions seen in training",
    "unseen": "caption and style never seen together",
    "open": "captions that many pictures answer",
    "pairs": "two concepts in one caption",
    "to_teacher": "distance to the teacher's picture, at equal noise and caption",
    "spread": "intervals of 95 %, and quality and variety apart",
    "classes": "classes",
    "memory": "is it a memory?",
}
HEADS = {
    "fd": "FD",
    "kid": "KID",
    "fd_ratio": "FD ratio",
    "fd_interval": "FD, +-",
    "kid_interval": "KID, +-",
    "cmmd": "CMMD",
    "text_image_score": "text-image",
    "text_image_ratio": "text-image ratio",
    "retrieval_top1": "top 1",
    "rmse": "RMSE",
    "psnr": "PSNR dB",
    "memorization_pixels": "memorization, pixels",
    "nearest_rmse": "nearest, RMSE",
    "samples": "n",
}
"""Headings of columns that are not named by their key."""


def subjects_of(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the evaluated subjects by name."""
    return {k: v for k, v in results.items() if isinstance(v, dict) and "calls" in v}


def sections(results: Mapping[str, Any]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Return (title, rows by subject) of each table, the main one first."""
    subjects = subjects_of(results)
    items = [item for row in subjects.values() for item in row.items()]
    kinds = list(dict.fromkeys(key for key, value in items if isinstance(value, dict)))
    captioned = {"unseen", "open", "pairs"} & set(kinds)
    found = [(TITLES["seen"] if captioned else "figures", subjects)]
    for kind in kinds:
        rows = {
            name: {"calls": row["calls"], **row[kind]}
            for name, row in subjects.items()
            if kind in row
        }
        found.append((TITLES.get(kind, kind), rows))
    return found


def columns_of(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the figures of any row, in their order, the number of samples last."""
    keys = [
        key for row in rows.values() for key, value in row.items() if not isinstance(value, dict)
    ]
    return sorted(dict.fromkeys(keys), key=lambda key: key == "samples")


def heading(column: str) -> str:
    """Return the readable name of a figure."""
    return HEADS.get(column, column.replace("_", " "))


def cell(column: str, value: Any) -> str:
    """Format a figure as text."""
    if value is None:
        return "-"
    if column == "psnr":
        return decibels(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Make the figures' tables for a terminal, one row a subject."""
    return [_table(title, rows) for title, rows in sections(results)]


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title=title, box=None, header_style="bold", title_justify="left")
    table.add_column("subject", no_wrap=True)
    columns = columns_of(rows)
    for column in columns:
        table.add_column(heading(column), justify="right")
    for name, row in rows.items():
        cells = [cell(column, row.get(column)) for column in columns]
        table.add_row(*map(Text, (name, *cells)))
    return table


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return lines on what the figures compare with, and how reliable they are."""
    about = results.get("about")
    if not about:
        return []
    features, reference = about["features"], about["reference"]
    count = "" if reference["samples"] is None else f", {reference['samples']} pictures"
    lines = [
        f"FD and KID: features of {features['name']} ({features['size']} numbers), against "
        f"{reference['name']}{count}."
    ]
    floor = about.get("floor")
    if floor:
        lines.append(
            f"Floor: two halves of these, {floor['samples']} each, have FD {floor['fd']:.3g}, "
            f"KID {floor['kid']:.3g}."
        )
    classifier = about.get("classifier")
    if classifier:
        lines.append(
            f"Classifier: trained on {classifier['samples']} of {classifier['trained_on']}, "
            f"accuracy {classifier['accuracy']:.3f} on {classifier['held_out']} held out."
        )
    memory = about.get("memory")
    if memory:
        lines.append(
            f"Memorization: share of samples nearer to one of {memory['training']} training "
            f"pictures than {100 - 100 * memory['quantile']:.0f} % of those are to each other; "
            f"about {100 * memory['quantile']:.0f} % is chance."
        )
    return [*lines, *about["notes"]]

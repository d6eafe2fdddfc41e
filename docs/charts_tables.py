"""Reads the tables of a page: `charts_panels.py` makes the panels of charts from them.

A cell such as `12.7 (12.6..13.6)` has a median, the least and the largest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

IMAGE = re.compile(r"!\[([^\]]*)\]\(charts/([\w.-]+)\)")
NUMBER = re.compile(r"(\d*\.?\d+)(?: \((\d*\.?\d+)\.\.(\d*\.?\d+)\))?")


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
        middle, low, high = found.groups()
        return Value(float(middle), float(low or middle), float(high or middle))

    def text(self, column: str) -> str:
        """The cell in `column`."""
        if column not in self.cells:
            raise ValueError(f"no column {column!r}; there are {', '.join(self.cells)}")
        return self.cells[column]

    def first(self, column: str) -> str:
        """The first word of the cell in `column`, as it is written."""
        return self.text(column).strip("* ").split()[0]


Tables = Sequence[Sequence[Row]]


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

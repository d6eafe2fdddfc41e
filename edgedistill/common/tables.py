"""Tables that fit a terminal, and keep each row on one line in a file or a pipe."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Column, Table
from rich.text import Text

from edgedistill.common.progress import PlainConsole, answer, answers, put, visible

__all__ = ["as_text", "fit", "paragraph", "show"]

GAP = 2
"""Number of blanks between two columns."""

WIDEST = 10_000
"""Width of a table without a limit."""


def show(table: Table) -> None:
    """Print a table on standard output.

    On a terminal, or where COLUMNS is set, cells are wrapped at words, and a table with too many
    columns is continued below, so that nothing is cut. Elsewhere a row is a line without padding.
    """
    width = _limit()
    if table.title:
        answer(str(table.title))
    pieces = fit(table, width)
    for index, piece in enumerate(pieces):
        if index:
            answer("")
        if answers.is_terminal:
            answers.print(piece)
        else:
            put(as_text(piece))


def paragraph(line: str) -> None:
    """Print a line on standard output, wrapped where `show` would wrap, with its indent."""
    width = _limit()
    if width is None:
        answer(line)
        return
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    parts = textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    for part in parts or [""]:
        answer(part)


def _limit() -> int | None:
    """Return the number of characters of a line on standard output; None for no limit."""
    return answers.width if answers.is_terminal else _columns()


def _columns() -> int | None:
    """Return the width that COLUMNS asks for, None without one."""
    word = os.environ.get("COLUMNS", "")
    return int(word) if word.isdecimal() and int(word) else None


def as_text(table: Table) -> str:
    """Render a table as plain text, without blanks at the ends of lines."""
    stream = io.StringIO()
    PlainConsole(file=stream, width=WIDEST, color_system=None, force_terminal=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


@dataclass(frozen=True)
class _Width:
    """Least and natural width of a column, in characters."""

    least: int
    natural: int


def fit(table: Table, width: int | None = None) -> list[Table]:
    """Return a table in one or more pieces that fit a width, each with the first column.

    Args:
        table: A table whose cells are text.
        width: Number of characters of a line; None for no limit.
    """
    limit = width or WIDEST
    sizes = [_width(column, limit) for column in table.columns]
    return [_piece(table, group, sizes, limit) for group in _groups(sizes, limit)]


def _width(column: Column, limit: int) -> _Width:
    """Measure a column; numbers, which stand at the right, are never wrapped."""
    head, cells = _plain(column.header), [_plain(cell) for cell in column.cells]
    natural = max(map(cell_len, [head, *cells]), default=0)
    words = head.split()
    if column.justify == "right" or column.no_wrap:
        words += cells
    else:
        words += [word for cell in cells for word in cell.split()]
    return _Width(min(max(map(cell_len, words), default=0), max(limit // 2, 8)), natural)


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else visible(str(cell))


def _groups(sizes: Sequence[_Width], limit: int) -> list[list[int]]:
    """Divide the columns after the first into groups that fit beside it."""
    groups, used = [[0]], sizes[0].least
    for index, size in enumerate(sizes[1:], 1):
        if used + GAP + size.least > limit and len(groups[-1]) > 1:
            groups.append([0])
            used = sizes[0].least
        groups[-1].append(index)
        used += GAP + size.least
    return groups


def _widths(sizes: Mapping[int, _Width], limit: int) -> dict[int, int]:
    """Share what the least widths leave, and what a column does not need goes to the others."""
    widths = {index: size.least for index, size in sizes.items()}
    spare = limit - sum(widths.values()) - GAP * (len(sizes) - 1)
    wants = sorted(sizes, key=lambda index: sizes[index].natural - widths[index])
    for rank, index in enumerate(wants):
        share = spare // (len(wants) - rank)
        more = max(0, min(share, sizes[index].natural - widths[index]))
        widths[index] += more
        spare -= more
    return widths


def _piece(table: Table, group: Sequence[int], sizes: Sequence[_Width], limit: int) -> Table:
    widths = _widths({index: sizes[index] for index in group}, limit)
    piece = Table(box=None, pad_edge=False, padding=(0, GAP // 2), show_header=table.show_header)
    piece.header_style = table.header_style
    for index in group:
        column = table.columns[index]
        piece.add_column(
            column.header, justify=column.justify, width=widths[index], overflow="fold"
        )
    for row in zip(*(list(table.columns[index].cells) for index in group), strict=True):
        piece.add_row(*row)
    return piece

"""HTML for notebooks: tables and pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

__all__ = ["figures_html", "picture_html", "table_html"]


def picture_html(file: Path) -> str:
    """An image element that holds a PNG file; empty where there is none."""
    if not file.is_file():
        return ""
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img alt="{escape(file.name)}" src="data:image/png;base64,{data}">'


def table_html(table: Table) -> str:
    """An HTML table of a rich one."""
    heads = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    cells = zip(*(column.cells for column in table.columns), strict=True)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in cells
    )
    title = f"<caption>{escape(str(table.title))}</caption>" if table.title else ""
    return f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def figures_html(title: str, figures: Mapping[str, Any], parts: Iterable[str] = ()) -> str:
    """A heading, a table of names and values, and further elements below it."""
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in figures.items()
    )
    return f"<h4>{escape(title)}</h4><table>{rows}</table>{''.join(parts)}"

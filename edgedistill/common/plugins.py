"""Literal tables of lazily imported classes, opened to third parties by entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from edgedistill.common.reading import short

__all__ = ["names", "resolve", "unknown"]


def unknown(
    what: str, name: str, choices: Iterable[str], listed_by: str | None = None
) -> ValueError:
    """Make a one-line ValueError that names the value, the nearest choice and all of them.

    Args:
        what: Kind of the name.
        name: The name.
        choices: The names that exist.
        listed_by: Command that lists them, where they are too many for a line; the error names
            it and up to three near names instead.
    """
    ordered = sorted(choices)
    near = difflib.get_close_matches(name[:100], ordered, 3 if listed_by else 1)
    *first, last = [repr(word) for word in near] or [""]
    hint = f" (did you mean {', '.join(first)}{' or ' if first else ''}{last}?)" if near else ""
    rest = f"`{listed_by}` lists all" if listed_by else f"choose from {', '.join(ordered)}"
    return ValueError(f"unknown {what} {short(name)}{hint}; {rest}")


def names(table: Mapping[str, str], group: str) -> list[str]:
    """Return every name in the table and the entry-point group."""
    return sorted({*table, *(point.name for point in entry_points(group=group))})


def resolve(what: str, table: Mapping[str, str], name: str, group: str) -> Any:
    """Import the object called `name` from "module:attribute" or the entry-point group."""
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group=group):
        if point.name == name:
            return point.load()
    raise unknown(what, name, names(table, group))

"""Literal tables of lazily imported classes, opened to third parties by entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from edgedistill.common.reading import short

__all__ = ["names", "resolve", "unknown"]


def unknown(what: str, name: str, choices: Iterable[str]) -> ValueError:
    """Make a one-line ValueError that names the value, the nearest choice and all of them."""
    ordered = sorted(choices)
    near = difflib.get_close_matches(name[:100], ordered, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return ValueError(f"unknown {what} {short(name)}{hint}; choose from {', '.join(ordered)}")


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

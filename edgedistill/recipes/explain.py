"""A recipe as YAML whose keys have their meaning in a comment above them."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from edgedistill.common.settings import Settings
from edgedistill.recipes.old_keys import section
from edgedistill.recipes.schema import Recipe

__all__ = ["explained", "meanings", "own_meanings"]

WIDTH = 88
"""Number of characters of a line."""


def own_meanings(kind: type) -> dict[str, str]:
    """Return the string below each field that a class itself declares."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind)))
    assert isinstance(tree.body[0], ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in itertools.pairwise(tree.body[0].body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                value=ast.Constant(value=str(words))
            ):
                found[name] = inspect.cleandoc(words)
    return found


def meanings(kind: type) -> dict[str, str]:
    """Return the meaning of each field of a section, and of the sections that it extends."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if issubclass(each, Settings) and each is not Settings:
            found |= own_meanings(each)
    return found


def explained(recipe: Recipe) -> str:
    """Dump a resolved recipe as YAML with comments; it loads to the same recipe."""
    data = recipe.model_dump(mode="json")
    return "".join(f"{line}\n" for line in _lines(Recipe, data, "", recipe))


def _lines(
    kind: type[Settings], data: Mapping[str, Any], indent: str, recipe: Recipe | None = None
) -> Iterator[str]:
    for key, value in data.items():
        told = _meaning(kind, key)
        yield from _comment(told, indent)
        inner = _section(kind, key)
        if recipe is not None and key == "objective":
            inner = type(recipe.method_config())
        if inner is None or not isinstance(value, dict):
            text = yaml.safe_dump({key: value}, sort_keys=False, width=WIDTH)
            yield from textwrap.indent(text.rstrip("\n"), indent).splitlines()
            continue
        if not told:
            yield from _comment(inspect.cleandoc(inner.__doc__ or ""), indent)
        yield f"{indent}{key}:"
        yield from _lines(inner, value, f"{indent}  ")


def _comment(text: str, indent: str) -> list[str]:
    words = " ".join(text.split())
    return textwrap.wrap(
        words, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )


def _meaning(kind: type[Settings], key: str) -> str:
    """Return the meaning of a section's key, which may be an older name."""
    told = meanings(kind)
    new = "" if key in kind.model_fields else kind.all_old_keys().get(key, "")
    if not new:
        return told.get(key, "")
    outer, dot, inner = new.partition(".")
    part = _section(kind, outer)
    text = meanings(part).get(inner, "") if dot and part else told.get(new, "")
    return f"{text} Newer name: {new}.".strip()


def _section(kind: type[Settings], key: str) -> type[Settings] | None:
    """Return the class of a field that is a section; None of any other."""
    found = section(kind, key)
    return found if found is not None and issubclass(found, Settings) else None

"""Older names of a recipe's keys: what replaces what, and what a user has written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from edgedistill import objectives
from edgedistill.common import settings
from edgedistill.common.settings import Settings
from edgedistill.recipes.files import method_of
from edgedistill.recipes.schema import Recipe

__all__ = ["as_given", "old_names", "section", "without_replaced"]


def section(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """Return the model of the section `key` inside another; None where it is no section."""
    field = model.model_fields.get(key)
    kinds = (field.annotation, *get_args(field.annotation)) if field else ()
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def kind_of(key: str, method: Any) -> type[Settings] | None:
    """Return the type of a recipe's section; of `objective`, that of a method by name."""
    if key == "objective":
        try:
            return objectives.find(str(method)).Config
        except ValueError:  # said where the whole recipe is checked
            return None
    kind = section(Recipe, key)
    return kind if kind is not None and issubclass(kind, Settings) else None


def without_replaced(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's sections without keys that the layer above sets under another name."""
    kept = dict(below)
    for key in below.keys() & above.keys():
        kind = kind_of(key, method_of(above) or method_of(below))
        if kind and isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            kept[key] = settings.without_replaced(kind, below[key], above[key])
    return kept


def old_names(recipe: Recipe, keys: Sequence[str]) -> list[str]:
    """Return the older names, as "section.key", of what `keys` of a recipe name or lie around."""
    found = []
    for first, _, rest in (key.partition(".") for key in keys):
        kind = kind_of(first, recipe.objective["name"])
        renamed = kind.all_old_keys() if kind else {}
        found += [
            f"{first}.{old}" for old, new in renamed.items() if f"{new}.".startswith(f"{rest}.")
        ]
    return found


def as_given(model: type[BaseModel], place: Sequence[str], data: Mapping[str, Any]) -> list[str]:
    """Return the place of an error by the names that `data` has for its keys."""
    for depth, part in enumerate(place):
        renamed = model.all_old_keys() if issubclass(model, Settings) else {}
        rest = ".".join(place[depth:])
        for old, new in renamed.items():
            if old in data and f"{rest}.".startswith(f"{new}."):
                return [*place[:depth], old, *place[depth + len(new.split(".")) :]]
        inner, given = section(model, part), data.get(part)
        if inner is None or not isinstance(given, Mapping):
            break
        model, data = inner, given
    return list(place)

"""Recipes: YAML and key=value overrides, checked into a typed, frozen `Recipe`.

Names are imported when they are asked for, so that listing recipes needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedistill.recipes.explain import explained
    from edgedistill.recipes.files import find, header, read
    from edgedistill.recipes.listing import chosen, folder, shipped, summaries
    from edgedistill.recipes.loading import asked, dump, evaluation_recipe, load, resolve
    from edgedistill.recipes.schema import Recipe

__all__ = [
    "Recipe",
    "asked",
    "chosen",
    "dump",
    "evaluation_recipe",
    "explained",
    "find",
    "folder",
    "header",
    "load",
    "read",
    "resolve",
    "shipped",
    "summaries",
]

_PLACES = {
    "explain": ("explained",),
    "files": ("find", "header", "read"),
    "listing": ("chosen", "folder", "shipped", "summaries"),
    "loading": ("asked", "dump", "evaluation_recipe", "load", "resolve"),
    "schema": ("Recipe",),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"edgedistill.recipes.{module}"), name)
    raise AttributeError(f"module 'edgedistill.recipes' has no attribute {name!r}")

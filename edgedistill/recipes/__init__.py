"""Recipes: YAML and key=value overrides, checked into a typed, frozen `Recipe`."""

from edgedistill.recipes.files import find, folder, header, read, shipped
from edgedistill.recipes.load import asked, dump, judged, load, resolve
from edgedistill.recipes.schema import Recipe

__all__ = [
    "Recipe",
    "asked",
    "dump",
    "find",
    "folder",
    "header",
    "judged",
    "load",
    "read",
    "resolve",
    "shipped",
]

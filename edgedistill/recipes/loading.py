"""Load a checked Recipe from YAML and key=value overrides, and dump it again."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from edgedistill import rewards
from edgedistill.common.reading import short
from edgedistill.recipes.bounds import check_numbers
from edgedistill.recipes.files import find, layered, shipped
from edgedistill.recipes.old_keys import as_given, old_names, section, without_replaced
from edgedistill.recipes.schema import EvaluationRecipe, Recipe

__all__ = ["asked", "dump", "evaluation_recipe", "load", "resolve"]

log = logging.getLogger(__name__)


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Resolve a recipe.

    Args:
        name: A shipped recipe's name, or a path ending in .yaml.
        overrides: "key.sub=value" each; values are read as YAML.

    Raises:
        ValueError: One line that names the recipe, key or value, and the choices.
    """
    path = find(name)
    log.debug(f"recipe {path} {' '.join(overrides)}")
    data = layered(path, overrides, without_replaced)
    data.setdefault("name", path.stem)
    return resolve(data)


def asked(verb: str, words: Sequence[str]) -> tuple[Recipe, str | None, list[str]]:
    """Return the recipe that a command's words name and override, its out=, and overridden keys.

    Keys that have an older name are there under both.

    Raises:
        ValueError: As in `load`, or if the words name no recipe, or anything twice.
    """
    for key in PLACES:
        found = [word for word in words if word.startswith(key)]
        if len(found) > 1:
            raise ValueError(f"{short(' '.join(found), 200)[1:-1]}: name one")
        if found == [key]:
            raise ValueError(f"{key} names nothing")
    given = dict(word.partition("=")[::2] for word in words if word.startswith(PLACES))
    rest = [word for word in words if not word.startswith(PLACES)]
    if "recipe" not in given:
        meant = next((word for word in rest if word in shipped()), None)
        if meant:
            raise ValueError(f"did you mean edgedistill {verb} recipe={meant}?")
        names = ", ".join(shipped())
        raise ValueError(f"name a recipe: edgedistill {verb} recipe=NAME, one of {names}")
    keys = [word.partition("=")[0] for word in rest]
    recipe = load(given["recipe"], rest)
    return recipe, given.get("out"), [*keys, *old_names(recipe, keys)]


PLACES = ("recipe=", "out=")
"""Prefixes of words that are no keys of the recipe."""


def resolve(data: Mapping[str, Any]) -> Recipe:
    """Check a plain mapping against the types; the first error becomes a one-line ValueError."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise _explain(error, Recipe, "", data) from None
    try:
        config = recipe.method_config()
    except ValidationError as error:
        method = recipe.method().Config
        raise _explain(error, method, "objective.", recipe.objective) from None
    if recipe.reward:
        kind = rewards.find(recipe.reward.name)
        try:
            kind.Config(**recipe.reward.options)
        except ValidationError as error:
            options = recipe.reward.options
            raise _explain(error, kind.Config, "reward.options.", options) from None
    full = {"name": recipe.objective["name"], **config.model_dump(mode="json")}
    recipe = recipe.model_copy(update={"objective": full})
    check_numbers(recipe.model_dump())
    return recipe


def evaluation_recipe(data: Mapping[str, Any]) -> EvaluationRecipe:
    """Read what a student's own recipe says about its teacher and evaluation."""
    try:
        return EvaluationRecipe.model_validate(data)
    except ValidationError as error:
        raise _explain(error, EvaluationRecipe, "", data) from None


def dump(recipe: Recipe) -> str:
    """Dump the resolved recipe as YAML."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=88)
    return text


def _explain(
    error: ValidationError, model: type[BaseModel], prefix: str, data: Mapping[str, Any]
) -> ValueError:
    first = error.errors()[0]
    place = as_given(model, [str(part) for part in first["loc"]], data)
    key = (prefix + ".".join(place)).rstrip(".")
    if first["type"] == "extra_forbidden":
        known = _fields(model, place[:-1])
        near = difflib.get_close_matches(place[-1][:100], known, 1)
        parent = prefix + "".join(f"{part}." for part in place[:-1])
        hint = f" (did you mean {parent}{near[0]}?)" if near else ""
        choices = f"; known here: {', '.join(known)}" if known else ""
        return ValueError(f"unknown key {_cut(key)}{hint}{choices}")
    if first["type"] == "missing":
        named = "" if prefix or "name" not in data else f" {short(data['name'])}"
        return ValueError(f"recipe{named} lacks {key}")
    reason = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] in ("model_type", "dict_type"):
        return ValueError(
            f"{key}={short(first['input'])}: {key} is a section; set its keys, {key}.KEY="
        )
    if not key:
        return ValueError(reason)
    if first["type"] == "tuple_type":
        reason = f"a list expected, {key}=[...,...]"
    key = _cut(key)
    given, reason = f"={short(first['input'])}: ", f"{reason[0].lower()}{reason[1:]}"
    if isinstance(first["input"], Mapping):
        # The content of a section would hide the reason, which may name one of its keys.
        given = "." if re.split("[=:]", reason)[0] in first["input"] else ": "
    return ValueError(f"{key}{given}{reason}")


def _cut(key: str) -> str:
    return short(key, 200)[1:-1]


def _fields(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    """List the keys of the section at `place` in a model; none where it is not a section."""
    for part in place:
        inner = section(model, part)
        if inner is None:
            return []
        model = inner
    return sorted(model.model_fields)

"""The shipped recipes, listed quickly: no torch, and only what a list shows is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgedistill.common.plugins import unknown

__all__ = ["Summary", "chosen", "folder", "shipped", "summaries"]

LAST = ("emoji", "mixture")
"""First words of names of recipes whose teachers are small examples; they are listed last."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Summary:
    """Entry of a recipe in a list.

    Attributes:
        description: Product of the recipe, for people.
        family: The teacher's family.
    """

    description: str
    family: str


def folder() -> Path:
    """Return the folder of shipped recipes: beside this file in the wheel, else at the root."""
    here = Path(__file__).parent
    return here if any(here.glob("*.yaml")) else here.parents[1] / "recipes"


def shipped() -> dict[str, Path]:
    """Return the shipped recipes by name."""
    return {file.stem: file for file in sorted(folder().glob("*.yaml"))}


def summaries() -> dict[str, Summary]:
    """Return a summary of each shipped recipe: real models first, examples last."""
    read = {name: _read(file) for name, file in shipped().items()}
    found = {name: _summary(data, read) for name, data in read.items()}
    order = sorted(found, key=lambda name: (_rank(name), name))
    return {name: found[name] for name in order}


def _rank(name: str) -> int:
    first = name.partition("-")[0]
    return LAST.index(first) + 1 if first in LAST else 0


def _read(file: Path) -> Mapping[str, Any]:
    """Read a file that is our own, so without the bounds of `files.read`."""
    data: Mapping[str, Any] = yaml.load(file.read_text("utf-8"), _Loader)  # noqa: S506  safe ones
    return data


def _summary(data: Mapping[str, Any], read: Mapping[str, Mapping[str, Any]]) -> Summary:
    below = read[Path(data["base"]).stem] if "base" in data else {}
    teacher = {**below.get("teacher", {}), **data.get("teacher", {})}
    description = data.get("description", below.get("description", ""))
    return Summary(str(description), str(teacher["family"]))


def chosen(word: str) -> dict[str, Summary]:
    """Return the recipes for a teacher's family, or a recipe's first word such as sd15.

    Raises:
        ValueError: If there are none; names the choices.
    """
    table = summaries()
    families = {summary.family for summary in table.values()}
    firsts = {name.partition("-")[0]: summary.family for name, summary in table.items()}
    if word not in families and word not in firsts:
        raise unknown("family", word, {*families, *firsts})
    if word in LAST:
        return {name: each for name, each in table.items() if name.startswith(f"{word}-")}
    family = word if word in families else firsts[word]
    return {name: each for name, each in table.items() if each.family == family}

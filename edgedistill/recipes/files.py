"""Recipe files and overrides, read within bounds into plain mappings."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from edgedistill.common.plugins import unknown
from edgedistill.common.reading import MAX_YAML, check_yaml, is_file, read_bytes, short
from edgedistill.recipes.listing import folder, shipped

__all__ = ["find", "folder", "header", "layered", "method_of", "read", "shipped"]

KEY = re.compile(r"\w[\w-]*(\.[\w-]+|\[\d{1,3}\]){0,15}")
"""Pattern of an override's key: names of nested sections, and indices of lists."""

BROKEN = (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError)
"""Exceptions that OmegaConf and PyYAML raise on unreadable input."""


def find(name: str) -> Path:
    """Return the file of a recipe given by name or path; ValueError names the nearest."""
    if name.endswith((".yaml", ".yml")):
        if not is_file(Path(name)):
            raise ValueError(f"no recipe file at {short(name, 200)}")
        return Path(name)
    table = shipped()
    if name not in table:
        raise unknown("recipe", name, table, "edgedistill recipes")
    return table[name]


Sections = dict[str, Any]

Below = Callable[[Sections, Sections], Sections]
"""Function of two layers' sections that returns what the first keeps under the second."""


def layered(
    path: Path, overrides: Sequence[str], below: Below = lambda under, over: under
) -> Sections:
    """Merge a recipe file over its base, under overrides; drop keys of another method.

    Args:
        path: The recipe file.
        overrides: "key.sub=value" each.
        below: Gives what a layer keeps under the next, where keys have several names.

    Raises:
        ValueError: One line that names the file, key or value.
    """
    data = read(path)
    if "base" in data:
        base = str(data.pop("base"))
        beside = path.parent / base
        try:
            under = read(find(str(beside) if is_file(beside) else base))
        except ValueError as error:
            raise ValueError(f"{path}: base: {error}") from None
        if "base" in under:
            raise ValueError(
                f"{path}: its base {short(base)} has a base itself; one level is allowed"
            )
        data = _over(under, data, str(path), below)
    return _over(data, _overridden(overrides), "cannot read overrides", below)


def _over(under: Sections, over: Sections, what: str, below: Below) -> Sections:
    if method_of(over) not in (None, method_of(under)):
        under["objective"] = {}
    under = below(under, over)
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(under), over))
    except BROKEN as error:
        raise ValueError(f"{what}: {_line(error)}") from None
    assert isinstance(merged, dict)
    return _named(merged)


def method_of(data: Mapping[str, Any]) -> Any:
    """Return the name of the method in a recipe's sections, None without one."""
    objective = data.get("objective")
    return objective.get("name") if isinstance(objective, dict) else None


def _overridden(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the sections that overrides set."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override {short(override)} is not key=value")
        try:
            check_yaml(value)
        except yaml.YAMLError:
            raise ValueError(
                f"override {short(override)} is not YAML; quote a value that is text: "
                f"{quoted(key, value if len(value) <= 200 else 'TEXT')}"
            ) from None
        except ValueError as error:
            raise ValueError(f"override {short(override)}: {_line(error)}") from None
        if not KEY.fullmatch(key):
            raise ValueError(f"override {short(override)}: a key such as train.steps expected")
    try:
        found = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except BROKEN as error:
        raise ValueError(f"cannot read overrides: {_line(error)}") from None
    assert isinstance(found, dict)
    return _named(found)


def quoted(key: str, value: str) -> str:
    """Write an override whose value YAML reads as this text, as one types it in a shell."""
    return shlex.quote(f"{key}={json.dumps(value, ensure_ascii=False)}")


def read(path: Path) -> dict[str, Any]:
    """Read the sections in a YAML file, unchecked; ValueError names the file."""
    try:
        text = read_bytes(path, MAX_YAML).decode("utf-8-sig")
        check_yaml(text)
        data = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except (*BROKEN, OSError) as error:
        raise ValueError(f"{path}: {_line(error)}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a mapping of sections expected")
    return _named(data)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    mark = getattr(error, "problem_mark", None)
    if mark is not None:  # YAML's first line only says what was being read
        return f"line {mark.line + 1}: {getattr(error, 'problem', None) or lines[0]}"
    return lines[0] if len(lines[0]) <= 300 else f"{lines[0][:200]}...{lines[0][-100:]}"


def _named(data: Mapping[Any, Any]) -> dict[str, Any]:
    """Convert every key to a string, since YAML keys may be numbers and more."""
    return {
        str(key): _named(value) if isinstance(value, Mapping) else value
        for key, value in data.items()
    }


def header(name: str) -> str:
    """Return the comments that a recipe's file begins with."""
    lines = read_bytes(find(name), MAX_YAML).decode("utf-8-sig").splitlines(keepends=True)
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))

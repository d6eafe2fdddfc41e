"""Base class of every section of a recipe, which also reads the older names of its keys."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

__all__ = ["Settings", "check_used", "renamed", "without_replaced"]


def renamed(**old_keys: str) -> Mapping[str, str]:
    """Return a section's `old_keys`: old="new", or old="section.new" for a key inside another."""
    return MappingProxyType(old_keys)


class Settings(BaseModel):
    """A section of a recipe: typed, frozen, and closed to unknown keys.

    Attributes:
        old_keys: Older names of keys: each is read as the key that it maps to, `key` or
            `section.key`. Dumps keep the older name, so that recipes, run dirs and the hashes of
            students stay the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    old_keys: ClassVar[Mapping[str, str]] = renamed()

    @classmethod
    def all_old_keys(cls) -> dict[str, str]:
        """Return the older names of keys, those of the sections that this one extends included."""
        found: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            found |= base.__dict__.get("old_keys", {})
        return found

    @model_validator(mode="before")
    @classmethod
    def _read_old_keys(cls, data: Any) -> Any:
        return _with_new_keys(cls, data) if isinstance(data, Mapping) else data

    @model_serializer(mode="wrap")
    def _write_old_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = serialize(self)
        return _with_old_keys(type(self), dumped) if self.all_old_keys() else dumped


def check_used(
    section: Settings, choice: str, unused: Mapping[str, Sequence[str]], instead: str
) -> None:
    """Raise a ValueError for numbers that are set and that the section's choice does not use.

    Args:
        section: The section.
        choice: Key of the choice.
        unused: Keys of the numbers that are not used, by value of the choice.
        instead: A value of the choice that uses them all.
    """
    value, fields = getattr(section, choice), type(section).model_fields
    defaults = {name: fields[name].default for name in unused.get(value, ())}
    wrong = [name for name, default in defaults.items() if getattr(section, name) != default]
    if wrong:
        given = ", ".join(f"{name}={_typed(getattr(section, name))}" for name in wrong)
        plain = ", ".join(f"{name}={_typed(defaults[name])}" for name in wrong)
        raise ValueError(
            f"{given}: not used with {choice}={value}; choose {choice}={instead}, or {plain}"
        )


def _typed(number: float | None) -> str:
    """Return a number as one types it in a recipe."""
    return "null" if number is None else f"{number:g}"


def without_replaced(
    kind: type[Settings], below: Mapping[str, Any], above: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a section's data `below` without the keys that `above` sets under another name."""
    kept = {k: dict(v) if isinstance(v, Mapping) else v for k, v in below.items()}
    for old, new in kind.all_old_keys().items():
        section, _, key = new.rpartition(".")
        inside, over = (each.get(section, {}) if section else each for each in (kept, above))
        if old in above and isinstance(inside, dict):
            inside.pop(key, None)
        if isinstance(over, Mapping) and key in over:
            kept.pop(old, None)
    return kept


def _with_new_keys(kind: type[Settings], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return `data` with the newer name of every key.

    Sections that have older names of keys are completed by the defaults of `kind`.
    """
    found, new_keys = dict(data), kind.all_old_keys()
    for section in {new.rpartition(".")[0] for new in new_keys.values()} - {""}:
        if isinstance(given := found.get(section, {}), Mapping):
            found[section] = {**_default(kind, section), **given}
    for old in new_keys.keys() & data.keys():
        section, _, key = new_keys[old].rpartition(".")
        given = data.get(section, {}) if section else data
        if not isinstance(given, Mapping) or key in given:
            raise ValueError(f"{old} is an older name of {new_keys[old]}; give one of the two")
        place: dict[str, Any] = found[section] if section else found
        place[key] = found.pop(old)
    return found


def _with_old_keys(kind: type[Settings], dumped: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dump with older names.

    Each stands where the class that declares it has its keys. What is left of a section whose keys
    have older names is kept if it is not the default.
    """
    new_keys = kind.all_old_keys()
    found: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for name, value in dumped.items():
        own = _first(kind, name).old_keys
        old_names = [old for old, new in new_keys.items() if new.partition(".")[0] == name]
        moved = {new_keys[old].rpartition(".")[2] for old in old_names}
        for old in old_names:
            section, _, key = new_keys[old].rpartition(".")
            (found if old in own else last)[old] = value[key] if section else value
        if not old_names:
            found[name] = value
        elif isinstance(value, dict) and name not in moved:
            left, default = (
                {key: each for key, each in section.items() if key not in moved}
                for section in (value, _default(kind, name))
            )
            found |= {name: left} if left != default else {}
    return found | last


def _first(kind: type[Settings], field: str) -> type[Settings]:
    """Return the class that declares a field first, of `kind` and those that it extends."""
    return next(
        base
        for base in reversed(kind.__mro__)
        if issubclass(base, Settings) and field in inspect.get_annotations(base)
    )


def _default(kind: type[Settings], section: str) -> dict[str, Any]:
    """Return the default of a section inside `kind`."""
    default: Settings = kind.model_fields[section].get_default()
    return default.model_dump(mode="json")

"""Bounds on a recipe's numbers and names, checked before anything of that size is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgedistill.common.reading import short

__all__ = ["check_name", "check_numbers"]

MAX_INTEGER = 10**9
MAX_FLOAT = 1e12
MAX_SEED = 2**63 - 1
MAX_TEXT = 10_000
"""Largest number of characters of a text."""
MAX_NAME = 200
"""Largest number of bytes of a name, which folders and temporary folders use."""


def check_numbers(data: Any, key: str = "") -> None:
    """Raise a ValueError that names the key of a number or text in `data` that is too large."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            check_numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(data, (list, tuple)):
        for i, value in enumerate(data):
            check_numbers(value, f"{key}[{i}]")
    elif isinstance(data, (int, float)):
        limit = MAX_INTEGER if isinstance(data, int) else MAX_FLOAT
        if key.endswith("seed"):
            limit = MAX_SEED
        if not abs(data) <= limit:
            raise ValueError(f"{key}={short(data)}: at most {limit:g} expected")
    elif isinstance(data, str) and len(data) > MAX_TEXT:
        raise ValueError(f"{key}={short(data)}: {len(data)} characters, {MAX_TEXT} at most")


def check_name(name: str) -> None:
    """Raise a ValueError unless `name` is a valid folder name on any system."""
    if not name.strip() or name.strip(".") == "" or name == "latest":
        raise ValueError(f"{short(name)} is no name of a run")
    if not name.isprintable() or any(char in name for char in '/\\:*?"<>|'):
        raise ValueError(
            f"{short(name)} names a folder in runs/: no slash, colon, quote, wildcard or "
            "control character; set out=DIR for another place"
        )
    if len(name.encode()) > MAX_NAME:
        raise ValueError(f"{short(name)} is longer than {MAX_NAME} bytes")

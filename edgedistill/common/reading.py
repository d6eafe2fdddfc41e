"""JSON and YAML that users and others wrote, read within bounds before anything else sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from edgedistill_runtime import strict_json

__all__ = ["MAX_YAML", "check_yaml", "is_file", "parse_json", "read_bytes", "short"]

MAX_YAML = 2**20
"""Characters of the largest YAML text."""

MAX_YAML_DEPTH = 32
"""Levels that mappings and sequences may be nested in each other."""

MAX_YAML_NODES = 5_000
"""Scalars, sequences and mappings of a text after its aliases are unfolded."""


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Read a regular file of at most `limit` bytes, by default 16 MiB.

    Raises:
        OSError: If it is not there or cannot be read.
        ValueError: If it is larger, or a folder, pipe or device.
    """
    return strict_json.read_bytes(path, limit or strict_json.MAX_BYTES)


def is_file(path: Path) -> bool:
    """Whether a file is at `path`; a name that no system takes is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def parse_json(data: bytes | str, *, strict: bool = False) -> Any:
    """Parse UTF-8 JSON that is not nested too deep, with or without a byte order mark.

    Args:
        data: The text.
        strict: Refuse also a key that is there twice, and numbers that are not finite.

    Raises:
        ValueError: In one line, if it is none.
    """
    return strict_json.parse(data, strict=strict)


def short(value: Any, limit: int = 60) -> str:
    """`repr` of a value for a message, its middle left out where it is long."""
    return strict_json.short(value, limit)


def check_yaml(text: str) -> None:
    """Refuse YAML that would take too much memory or time to build.

    The text is read as a stream of events, which no alias multiplies and no depth stacks.

    Raises:
        ValueError: In one line, if the text is too long, too deep or, with every alias replaced
            by what it stands for, too large; or if an alias stands for what it is in.
        yaml.YAMLError: If it is no YAML.
    """
    if len(text) > MAX_YAML:
        raise ValueError(f"has {len(text)} characters; at most {MAX_YAML} expected")
    nodes = 0
    sizes: dict[str, int] = {}
    parents: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            nodes += _unfolded(event, sizes)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = parents.pop()
            sizes |= {anchor: nodes - before} if anchor else {}
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if isinstance(event, yaml.ScalarEvent):
                sizes |= {event.anchor: 1} if event.anchor else {}
            else:
                parents.append((event.anchor, nodes - 1))
        if len(parents) > MAX_YAML_DEPTH:
            raise ValueError(f"nested deeper than {MAX_YAML_DEPTH} levels")
        if nodes > MAX_YAML_NODES:
            raise ValueError(f"more than {MAX_YAML_NODES} values, its aliases unfolded")


def _unfolded(alias: yaml.AliasEvent, sizes: dict[str, int]) -> int:
    """Nodes that an alias stands for."""
    name = alias.anchor or ""
    if name not in sizes:
        raise ValueError(f"alias *{name:.60} stands for nothing, or for what it is in")
    return sizes[name]

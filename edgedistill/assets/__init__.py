"""Teachers that ship with the package: `emoji`, and mixtures by name."""

from __future__ import annotations

from pathlib import Path

from edgedistill.common.plugins import unknown

__all__ = ["ROOT", "find"]

ROOT = Path(__file__).parent


def find(kind: str, name: str) -> Path:
    """Return the file `name`, or the shipped asset of that name under `kind`.

    Raises:
        ValueError: If neither exists; names the shipped ones.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {file.stem: file for file in sorted((ROOT / kind).glob("*.json"))}
    if name in shipped:
        return shipped[name]
    if "/" in name or name.endswith(".json"):
        raise ValueError(f"no file at {name!r}; shipped {kind}: {', '.join(shipped)}")
    raise unknown(kind.rstrip("s"), name, shipped)

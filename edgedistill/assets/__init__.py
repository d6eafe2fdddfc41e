"""Assets that ship with the package: a teacher, and mixtures and features by name."""

from __future__ import annotations

from pathlib import Path

from edgedistill.common.plugins import unknown

__all__ = ["ROOT", "find"]

ROOT = Path(__file__).parent


def find(kind: str, name: str, suffix: str = ".json") -> Path:
    """Return the file `name`, or the shipped asset of that name under `kind`.

    Args:
        kind: Folder of the assets, a plural.
        name: Path of a file, or the name of an asset.
        suffix: Suffix of the assets' files.

    Raises:
        ValueError: If neither exists; names the shipped ones.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {file.stem: file for file in sorted((ROOT / kind).glob(f"*{suffix}"))}
    if name in shipped:
        return shipped[name]
    if "/" in name or name.endswith(suffix):
        raise ValueError(f"no file at {name!r}; shipped {kind}: {', '.join(shipped)}")
    raise unknown(kind.rstrip("s"), name, shipped)

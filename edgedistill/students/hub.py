"""Students on the Hugging Face Hub, as run dirs beside which bundles and figures are written."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from edgedistill.common.files import atomic_folder, read_json
from edgedistill.common.hashes import files_in
from edgedistill_runtime.hub import HubName, fetch, hub_name
from edgedistill_runtime.routes import ROUTES

__all__ = ["working_copy"]

STUDENT = "student.json"


def working_copy(path: str | os.PathLike[str]) -> Path:
    """Return a local path as it is; of a student on the Hub, a copy that can be written beside.

    The copy is runs/NAME/student, or runs/NAME@REVISION/student. Weights are not stored twice
    where the disk can link them. A bundle is not copied, since nothing is written beside it.

    Raises:
        ValueError: If the Hub has no such student or bundle, or another student is at its place.
    """
    name = hub_name(path)
    if name is None:
        return Path(path)
    kept = fetch(name)
    for file, inner in ((STUDENT, "student"), (ROUTES, "students")):
        if (kept / file).is_file():
            return _copied(kept, name, inner, file)
    return kept


def _copied(kept: Path, name: HubName, inner: str, file: str) -> Path:
    """Copy a fetched student to its place, unless it is there already."""
    run = name.name + (f"@{name.revision.replace('/', '-')}" if name.revision else "")
    place = Path("runs") / run / inner
    if place.is_dir():
        if _identity(place / file) != _identity(kept / file):
            raise ValueError(
                f"{place}: holds another student than {name} on the Hub; move it away"
            )
        return place
    with atomic_folder(place) as work:
        for each in files_in(kept):
            (work / each).parent.mkdir(parents=True, exist_ok=True)
            _put((kept / each).resolve(), work / each)
    return place


def _put(source: Path, target: Path) -> None:
    """Copy a file; weights, which are never changed in place, are linked if they can be."""
    if target.suffix == ".safetensors":
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _identity(file: Path) -> object:
    """Return what tells one student from another: the hashes, or all that routes conditions."""
    data = read_json(file) if file.is_file() else {}
    return data.get("sha256") or data

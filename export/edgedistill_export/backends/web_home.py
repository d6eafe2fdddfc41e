"""The npm package onnxruntime-web: where it is, and how to get it."""

from __future__ import annotations

import json
import os
from pathlib import Path

__all__ = ["HOME", "find_home", "package_version", "problem"]

HOME = "EDGEDISTILL_WEB"
"""Environment variable with a folder whose node_modules holds onnxruntime-web."""

_PACKAGE = Path("node_modules", "onnxruntime-web", "package.json")
_CHECKOUT = Path(__file__).resolve().parents[3] / "runtime" / "web"


def find_home() -> Path:
    """Return the folder where node finds onnxruntime-web.

    It is `EDGEDISTILL_WEB` if that is set, else runtime/web of a checkout, or the working
    directory.

    Raises:
        ValueError: If the package is in none of them; says how to install it.
    """
    named = os.environ.get(HOME)
    places = [Path(named)] if named else [_CHECKOUT, Path()]
    for place in places:
        if (place / _PACKAGE).is_file():
            return place.resolve()
    if (_CHECKOUT / "package.json").is_file():
        where, get = "runtime/web or the working directory", "npm install --prefix runtime/web"
    else:  # installed from a wheel
        where, get = "the working directory", "npm install onnxruntime-web"
    raise ValueError(
        f"no npm package onnxruntime-web in {named or where}: {get}, or name a folder that has "
        f"it in {HOME}"
    )


def package_version() -> str:
    """Return the version of the installed onnxruntime-web; ValueError without one."""
    package = json.loads((find_home() / _PACKAGE).read_text("utf-8"))
    return str(package["version"])


def problem() -> str | None:
    """Return in one line why onnxruntime-web cannot run here; None if it can."""
    try:
        find_home()
    except ValueError as error:
        return str(error)
    return None

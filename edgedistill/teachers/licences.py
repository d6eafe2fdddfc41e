"""Terms of use of a teacher's weights, and parts of its pipeline that a student lacks."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edgedistill.teachers.hub import kept_at

__all__ = ["Rights", "copy_texts", "lacks_of", "merged", "rights_of"]

TEXTS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "USE-POLICY*", "COPYING*")
"""Patterns of files that hold terms; they are copied into students."""

KNOWN = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "creativeml open rail++-m": "openrail++",
    "creativeml open rail-m": "creativeml-openrail-m",
    "creativeml open rail m": "creativeml-openrail-m",
    "bigscience openrail-m": "bigscience-openrail-m",
    "gnu general public license": "gpl",
    "bsd 3-clause": "bsd-3-clause",
    "creative commons attribution-noncommercial": "cc-by-nc-4.0",
}
"""The Hub's name of a licence by words near the start of its text."""

_HEAD = 400
"""Number of characters at the start of a text in which its name is searched."""


@dataclass(frozen=True)
class Rights:
    """Terms under which weights are published.

    Attributes:
        licences: The Hub's names of the licences; empty if none was found.
        details: `license_name` and `license_link` of a licence that the Hub has no name for.
    """

    licences: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)


def rights_of(path: str, in_header: str = "") -> Rights:
    """Return the terms that a folder, a file or a downloaded Hub id states.

    The front matter of README.md takes precedence, then a file's header, then a licence text
    beside it.

    Args:
        path: Path of the weights. For a file, its folder is searched.
        in_header: Licence in the header of a file; "" if it names none.
    """
    place = kept_at(path)
    folder = place.parent if place.is_file() else place
    stated = _front_matter(folder / "README.md")
    named = stated.get("license") or in_header
    licences = [named] if isinstance(named, str) and named else named or []
    licences = [str(each) for each in licences] if isinstance(licences, list) else []
    details = {
        key: str(stated[key]) for key in ("license_name", "license_link") if stated.get(key)
    }
    if not licences:
        texts = texts_in(folder)
        licences = [_named(texts[0])] if texts else []
    return Rights(tuple(licences), details)


def merged(rights: Iterable[Rights]) -> Rights:
    """Merge the terms of several weights, each once."""
    every = list(rights)
    licences = dict.fromkeys(name for each in every for name in each.licences)
    details = {key: value for each in reversed(every) for key, value in each.details.items()}
    return Rights(tuple(licences), details)


def texts_in(folder: Path) -> list[Path]:
    """List the files with terms in a folder, by name."""
    if not folder.is_dir():
        return []
    found = {file for pattern in TEXTS for file in folder.glob(pattern) if file.is_file()}
    return sorted(found)


def copy_texts(source: str, folder: Path) -> None:
    """Copy the files with terms from a teacher's folder, or the folder of its file."""
    place = kept_at(source)
    for file in texts_in(place.parent if place.is_file() else place):
        shutil.copyfile(file, folder / file.name)


def lacks_of(index: Mapping[str, Any]) -> list[str]:
    """List what a pipeline does to pictures besides drawing them, which students do not.

    Args:
        index: The pipeline's model_index.json.
    """
    lines = []
    library, kind = _component(index, "safety_checker")
    if library and kind:
        lines.append(
            f"the teacher's pipeline has a safety checker ({kind}); students and bundles have "
            "none: check prompts and pictures where they are shown"
        )
    if index.get("_class_name") == "StableDiffusionXLPipeline":
        marked = index.get("add_watermarker")
        if marked is None or marked:
            lines.append(
                "diffusers puts an invisible watermark into SDXL's pictures where "
                "invisible-watermark is installed; bundles put none"
            )
    return lines


def _component(index: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    found = index.get(name)
    return (found[0], found[1]) if isinstance(found, (list, tuple)) else (None, None)


def _front_matter(card: Path) -> dict[str, Any]:
    """Read the YAML at the start of a model card; {} where there is none that can be read."""
    try:
        text = card.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return {}
    if not text.startswith("---"):
        return {}
    head = text[3:].partition("\n---")[0]
    try:
        data = yaml.safe_load(head) if "&" not in head else None  # aliases may unfold
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def _named(file: Path) -> str:
    """Return the Hub's name of the licence in a file, or "other"."""
    head = file.read_text(encoding="utf-8", errors="replace")[:_HEAD].lower()
    words = " ".join(head.replace("_", " ").split())
    return next((name for part, name in KNOWN.items() if part in words), "other")

"""List a folder of pictures as Hugging Face's imagefolder does.

huggingface.co/docs/datasets/image_dataset: captions in metadata.jsonl, metadata.csv or
metadata.parquet, at the top or in any folder below, with names relative to the metadata file; a
folder of classes has one folder for each class; train/ takes precedence over test/ and
validation/.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgedistill.common.text import shown
from edgedistill.data.tables import TABLES, column, read_table, spoken

__all__ = ["Found", "Metadata", "few", "read_metadata", "walk"]

NAMED = 3
"""Number of names that a message lists."""

_TRAIN = ("train", "training")
_OTHERS = ("test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev")
_JUNK = ("thumbs.db", "desktop.ini")

UNREAD = (
    *(".avif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".ppm", ".psd", ".svg", ".tga"),
    *(".arw", ".cr2", ".dng", ".nef", ".raw", ".arrow", ".tgz", ".gz", ".zip"),
)
"""Endings of picture files that are not read."""


def few(names: Sequence[object]) -> str:
    """Return the first of some names, for a message."""
    return ", ".join(shown(name) for name in names[:NAMED]) + (", ..." if names[NAMED:] else "")


@dataclass
class Found:
    """Files that a walk through a folder found.

    Attributes:
        files: Regular files, sorted; hidden ones are left out.
        notes: Lines about skipped files.
    """

    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def walk(root: Path) -> Found:
    """List all files below a folder; linked folders are followed, each real folder once.

    Names that begin with "." or "__" are hidden, as in imagefolder. If there is a train/ at the
    top, test/ and validation/ beside it are left out.
    """
    found, odd = Found(), []
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []
    again: list[Path] = []
    waiting = [root]
    while waiting or links:
        # Real folders first: a folder that is linked and real is found at its own place.
        folder = waiting.pop() if waiting else links.pop(0)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            again.append(folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True):
            if entry.name.startswith((".", "__")) or entry.name.lower() in _JUNK:
                continue
            path = Path(entry.path)
            kind = _kind(entry)
            if kind == "folder":
                (links if entry.is_symlink() else waiting).append(path)
            elif kind == "file":
                found.files.append(path)
            else:
                odd.append(path)
    found.files.sort()
    relative = [path.relative_to(root) for path in (*odd, *again)]
    if odd:
        found.notes.append(f"{len(odd)} names are no files: {few(relative[: len(odd)])}")
    if again:
        found.notes.append(
            f"{len(again)} links lead to folders that are read anyway: {few(relative[len(odd) :])}"
        )
    _leave_splits(root, found)
    return found


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        mode = entry.stat().st_mode
    except OSError:  # a dangling or circular link
        return ""
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else ""


def _leave_splits(root: Path, found: Found) -> None:
    """Leave out the pictures of test and validation splits."""
    tops = [file.relative_to(root).parts[0].lower() for file in found.files]
    inside = [len(file.relative_to(root).parts) > 1 for file in found.files]
    if not any(top in _TRAIN and below for top, below in zip(tops, inside, strict=True)):
        return
    left = [below and top in _OTHERS for top, below in zip(tops, inside, strict=True)]
    if any(left):
        names = sorted({top for top, out in zip(tops, left, strict=True) if out})
        found.notes.append(
            f"{sum(left)} files of {' and '.join(names)} are left out, since there is train; name "
            "another folder to learn from them"
        )
        found.files = [file for file, out in zip(found.files, left, strict=True) if not out]


@dataclass
class Metadata:
    """Captions by the picture's name relative to the root.

    Attributes:
        files: Metadata files that hold the captions.
        texts: The captions by name.
        twice: Names with two different captions; the first one counts.
    """

    files: list[Path] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)

    def matched(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the captions of those `names` that have one, in whatever Unicode form."""
        rows = {_normal(name): text for name, text in self.texts.items()}
        return {name: rows[_normal(name)] for name in names if _normal(name) in rows}

    def lost(self, names: Sequence[str]) -> list[str]:
        """Return the names of rows that belong to none of `names`, sorted."""
        known = {_normal(name) for name in names}
        return sorted(name for name in self.texts if _normal(name) not in known)


def read_metadata(root: Path, files: Sequence[Path], key: str, *, classes: bool) -> Metadata:
    """Read captions from the metadata files among `files`; the file nearest to a picture counts.

    Args:
        root: The folder that names are relative to.
        files: Files as from `walk`.
        key: Column of the captions.
        classes: Whether captions are classes.

    Raises:
        ValueError: If a file is malformed; names it and the row.
    """
    found = Metadata()
    tables = [
        file for file in files if file.stem.lower() == "metadata" and file.suffix.lower() in TABLES
    ]
    for folder in {file.parent for file in tables}:
        several = sorted(file.name for file in tables if file.parent == folder)
        if len(several) > 1:
            raise ValueError(f"{shown(folder)}: {' and '.join(several)}; keep one of them")
    # The deepest file is the nearest.
    for file in sorted(tables, key=lambda file: (-len(file.parts), file)):
        found.files.append(file)
        own: dict[str, str] = {}
        for name, text in _rows(root, file, key, classes=classes):
            if own.setdefault(name, text) != text:
                found.twice.append(name)
        found.texts = {**own, **found.texts}
    return found


def _rows(root: Path, file: Path, key: str, *, classes: bool) -> Iterator[tuple[str, str]]:
    where = PurePosixPath(file.relative_to(root).parent.as_posix())
    usual = ("label", "class", "text") if classes else ("text", "caption", "prompt")
    for number, row in read_table(file):
        named = _named(list(row))
        if not named or not isinstance(row[named], str):
            has = ", ".join(shown(name) for name in row)
            raise ValueError(
                f'{shown(file)}: line {number} names no picture under "file_name"; it has {has}'
            )
        text = column(row, key, file, usual)
        try:
            caption = spoken(row[text])
        except ValueError as error:
            raise ValueError(f"{shown(file)}: line {number}: {text}: {error}") from None
        yield _place(where, row[named]), caption


def _named(columns: Sequence[str]) -> str:
    """Return the column with the pictures' names; "" if there is none or it is ambiguous."""
    for name in ("file_name", "image_file_name"):
        if name in columns:
            return name
    found = [name for name in columns if name.endswith("_file_name")]
    return found[0] if len(found) == 1 else ""


def _place(folder: PurePosixPath, name: str) -> str:
    """Return a row's name relative to the root; backslashes and ./ are allowed."""
    path = os.path.normpath(str(folder / name.strip().replace("\\", "/")))
    return PurePosixPath(path).as_posix()


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)

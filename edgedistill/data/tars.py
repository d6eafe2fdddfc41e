"""Samples of webdataset shards: consecutive files of a tar that share a name.

The format is that of github.com/webdataset/webdataset 1.0.2: a file's name ends at the first dot
after the last slash, and what follows is its ending. A file without a name or an ending belongs to
no sample and does not split one, such as `._0.png` in tars made on a Mac.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

from edgedistill.common.text import decode, parse_json, shown
from edgedistill.data.tables import spoken

__all__ = ["MEMBER", "TarSample", "read_samples"]

MEMBER = 256 * 2**20
"""Largest size of a tar member that is read, in bytes; a sparse one may claim any size."""

_NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.S)
_SPECIAL = re.compile(r"__[^/]*__(/|$)")


@dataclass(frozen=True)
class TarSample:
    """Files that share a name, readable until the next sample is requested.

    Attributes:
        name: The files' name in the tar, without ending.
        members: Functions that read the bytes, by ending (".jpg", lower case).
        twice: Endings that occur more than once, which makes them ambiguous.
    """

    name: str
    members: Mapping[str, Callable[[], bytes]]
    twice: tuple[str, ...] = field(default=())

    def ending(self, *endings: str) -> str | None:
        """Return the ending among these, or the only one ending in one, as ".seg.png" in ".png".

        Raises:
            ValueError: If several end in one of these and none equals one, or the ending occurs
                twice.
        """
        found = next((ending for ending in endings if ending in self.members), None)
        if found is None:
            longer = [each for each in self.members if each.endswith(endings)]
            if len(longer) > 1:
                raise ValueError(f"which of {', '.join(map(shown, longer))} is meant is not known")
            found = longer[0] if longer else None
        if found in self.twice:
            raise ValueError(f"{shown(found)} is twice in the tar under this name")
        return found

    def caption(self, key: str, *, classes: bool = False) -> str:
        """Return the text of .txt, else the value of .json under `key`; "" if there is neither.

        Args:
            key: Key in the .json.
            classes: Whether captions are classes: then a .cls takes precedence, and a whole number
                under `key` is allowed.

        Raises:
            ValueError: If the text is not UTF-8 or not JSON.
            tarfile.TarError: If the member cannot be read.
        """
        for kind, text in CAPTIONS[classes].items():
            ending = self.ending(kind)
            if ending is not None:
                found = text(self.members[ending](), key).strip()
                if found:
                    return found
        return ""


def _plain(data: bytes, key: str) -> str:
    return decode(data, "caption")


def _json(data: bytes, key: str) -> str:
    found = parse_json(decode(data, "caption"), "caption")
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""


def _class(data: bytes, key: str) -> str:
    found = parse_json(decode(data, "caption"), "caption")
    return spoken(found.get(key)) if isinstance(found, dict) else ""


_Caption = Callable[[bytes, str], str]
CAPTIONS: dict[bool, dict[str, _Caption]] = {
    False: {".txt": _plain, ".json": _json},
    True: {".cls": _plain, ".txt": _plain, ".json": _class},
}
"""Readers of captions, by whether these are classes and by ending, (bytes, key) -> caption. The
first reader with a result that is not empty counts."""


def read_samples(path: Path) -> Iterator[TarSample]:
    """Read the samples of an uncompressed tar in order, and only their headers.

    Raises:
        OSError: If the file cannot be opened.
        tarfile.TarError: If the tar is truncated or a header is damaged. The sample before that
            place is not given, since some of its files may be missing.
    """
    with path.open("rb") as file:
        _check_start(file.read(6))
        file.seek(0)
        with _sound(), tarfile.open(fileobj=file, mode="r:") as tar:
            named = ((found, member) for member in tar if (found := _named(member)))
            for name, group in groupby(named, key=lambda pair: pair[0][0]):
                files = [(ending, member) for (_, ending), member in group]
                times = Counter(ending for ending, _ in files)
                yield TarSample(
                    name,
                    {ending: partial(_read, tar, member) for ending, member in files},
                    tuple(ending for ending, count in times.items() if count > 1),
                )
            # tarfile takes a damaged header after the first for the end of the tar.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"damaged header at byte {tar.offset}")


@contextmanager
def _sound() -> Iterator[None]:
    """Turn other errors that tarfile raises on damaged headers into its ReadError."""
    try:
        yield
    except (ValueError, LookupError, OverflowError, RecursionError) as error:
        raise tarfile.ReadError(f"damaged header: {error}") from error


def _check_start(start: bytes) -> None:
    packed = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"(\xb5/\xfd": "zstd"}
    for mark, name in packed.items():
        if start.startswith(mark):
            raise tarfile.ReadError(f"compressed with {name}; uncompress it")


def _named(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Return ("folder/name", ".ending"); None for a member of no sample."""
    found = _NAME.fullmatch(member.name) if member.isfile() else None
    if found is None or _SPECIAL.match(member.name) or "__MACOSX/" in member.name:
        return None
    return found[1], "." + found[2].lower()


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MEMBER:
        raise ValueError(f"{member.size >> 20} MiB by its header; at most {MEMBER >> 20} are read")
    file = tar.extractfile(member)
    assert file is not None  # only links and folders have none
    return file.read()

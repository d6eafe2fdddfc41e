"""Samples of webdataset shards: files of a tar that follow one another under one name.

The format is that of github.com/webdataset/webdataset 1.0.2: a file's name ends at the first dot
after the last slash, and what follows is its ending. A file without a name or an ending belongs to
no sample and parts none, as `._0.png` of tars made on a Mac.
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
"""Bytes of the largest file in a tar that is read: a sparse one may claim any size."""

_NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.S)
_SPECIAL = re.compile(r"__[^/]*__(/|$)")


@dataclass(frozen=True)
class TarSample:
    """Files of one name, which can be read until the next sample is asked for.

    Attributes:
        name: Theirs in the tar, without ending.
        members: Function that reads the bytes, by ending (".jpg", lower case).
        twice: Endings that came more than once, of which there is no telling which counts.
    """

    name: str
    members: Mapping[str, Callable[[], bytes]]
    twice: tuple[str, ...] = field(default=())

    def ending(self, *endings: str) -> str | None:
        """The ending that is one of these, or the only one that ends in one: ".seg.png" in ".png".

        Raises:
            ValueError: If there are several of which none stands before the others, or the one
                comes twice.
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
        """The text of .txt, else what .json holds under `key`; "" if there is neither.

        Args:
            key: See above.
            classes: Whether captions are classes: then a .cls counts before the others, and a
                whole number under `key`.

        Raises:
            ValueError: If it is not UTF-8 or not JSON.
            tarfile.TarError: If it cannot be read.
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
"""By whether they are classes and by ending, (bytes, key) -> caption; the first that is there and
not empty counts."""


def read_samples(path: Path) -> Iterator[TarSample]:
    """The samples of an uncompressed tar in their order; only headers are read.

    Raises:
        OSError: If the file cannot be opened.
        tarfile.TarError: Where the tar breaks off or a header is damaged. The sample before that
            place is not given, since files of it may be missing.
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
            # tarfile takes a damaged header beyond the first for the end.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"damaged header at byte {tar.offset}")


@contextmanager
def _sound() -> Iterator[None]:
    """What else tarfile raises of damaged headers, as an error of its own."""
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
    """("folder/name", ".ending"); None for what belongs to no sample."""
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

"""Samples of webdataset shards: files of a tar that follow one another under one name.

The format is that of github.com/webdataset/webdataset: a file's name ends at the first dot after
the last slash, and what follows is its ending.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

__all__ = ["Sample", "read_samples", "utf8"]


@dataclass(frozen=True)
class Sample:
    """Files of one name, which can be read until the next sample is asked for.

    Attributes:
        name: Theirs in the tar, without ending.
        members: Function that reads the bytes, by ending (".jpg", lower case).
    """

    name: str
    members: Mapping[str, Callable[[], bytes]]

    def caption(self, key: str) -> str:
        """The text of .txt, else what .json holds under `key`; "" if there is neither.

        Raises:
            ValueError: If it is not UTF-8 or not JSON.
            tarfile.TarError: If it cannot be read.
        """
        for ending, text in CAPTIONS.items():
            if ending in self.members:
                found = text(self.members[ending](), key).strip()
                if found:
                    return found
        return ""


def utf8(data: bytes) -> str:
    """The text of a caption's file; ValueError says what is wrong with it."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"caption not UTF-8 text (byte {error.start})") from None


def _plain(data: bytes, key: str) -> str:
    return utf8(data)


def _json(data: bytes, key: str) -> str:
    found = json.loads(utf8(data))
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""


CAPTIONS: dict[str, Callable[[bytes, str], str]] = {".txt": _plain, ".json": _json}
"""By ending, (bytes, key) -> caption; the first that is there and not empty counts."""


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of an uncompressed tar in their order; only headers are read.

    Raises:
        OSError: If the file cannot be opened.
        tarfile.TarError: Where the tar breaks off or a header is damaged. The sample before that
            place is not given, since files of it may be missing.
    """
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        named = ((_split(member.name), member) for member in tar if member.isfile())
        for name, group in groupby(named, key=lambda pair: pair[0][0]):
            found = {ending: _reader(tar, member) for (_, ending), member in group}
            if not name.rpartition("/")[2]:
                continue  # hidden files
            yield Sample(name, found)
        # tarfile takes a damaged header beyond the first for the end.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged header at byte {tar.offset}")


def _split(name: str) -> tuple[str, str]:
    """("folder/name", ".ending")."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return folder + slash + stem, (dot + ending).lower()


def _reader(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        file = tar.extractfile(member)
        assert file is not None  # only links and folders have none
        return file.read()

    return read

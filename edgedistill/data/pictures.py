"""A user's own pictures: found on disk, read one at a time, and encoded to a teacher's x0.

Folders in the layout of Hugging Face's imagefolder (`folders.py`) and webdataset shards
(`tars.py`). Files are found by their names; their content is only checked when they are read.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from edgedistill.common.text import check_file, decode, is_folder, shown
from edgedistill.data.folders import UNREAD, Found, Metadata, few, read_metadata, walk
from edgedistill.data.images import FAULTS, PICTURES, read_picture
from edgedistill.data.tars import TarSample, read_samples
from edgedistill.teachers.base import Teacher
from edgedistill.teachers.latents import to_float

__all__ = [
    "FAULTS",
    "Codec",
    "Listing",
    "Record",
    "Words",
    "list_pictures",
    "read_picture",
    "some_of",
]

Words = Literal["captions", "classes", "none"]
"""Kind of text that a teacher reads with a picture."""

LARGEST = 256 * 2**20
"""Largest size of a picture file that is read, in bytes."""

_BESIDE = (".txt", ".caption")
"""Endings of a caption's own file."""


@dataclass(frozen=True)
class Record:
    """One picture.

    Attributes:
        name: Name for messages.
        read: Function that returns (bytes of the file, caption) or raises one of `FAULTS`. It can
            be called until the next record is requested.
    """

    name: str
    read: Callable[[], tuple[bytes, str]]


@dataclass(frozen=True)
class Listing:
    """List of files that hold pictures; none has been opened.

    Attributes:
        root: The folder that names are relative to.
        files: Pictures and tars, sorted.
        texts: Captions from the metadata, by name.
        key: Key of the caption in a .json of a tar.
        digest: sha256 of names, sizes, modification times and the key.
        beside: Caption files by the path of the picture without its ending.
        words: Kind of the captions.
        notes: Lines about unmatched and skipped files.
    """

    root: Path
    files: tuple[Path, ...]
    texts: Mapping[str, str]
    key: str
    digest: str
    beside: Mapping[Path, Path] = field(default_factory=dict)
    words: Words = "captions"
    notes: tuple[str, ...] = ()

    def records(self) -> Iterator[Record]:
        """Yield every picture in order; a truncated tar ends in a record that cannot be read."""
        for file in self.files:
            yield from KINDS[file.suffix.lower()](self, file)

    def some(self, most: int) -> tuple[Iterator[Record], int]:
        """Return `most` records as `some_of` chooses them, and the number of all."""
        total = sum(1 for _ in self.records())
        rows = set(some_of(total, most))
        return (record for i, record in enumerate(self.records()) if i in rows), total

    def name(self, file: Path) -> str:
        """Return a file's name relative to the root."""
        return file.relative_to(self.root).as_posix()

    def caption(self, file: Path) -> str:
        """Return a picture's caption: its caption file, else its metadata, its class, its name."""
        beside = self.beside.get(file.with_suffix(""))
        if beside is not None:
            check_file(beside)
            return decode(beside.read_bytes(), "caption").strip()
        name = self.name(file)
        if name in self.texts:
            return self.texts[name]
        word = file.stem
        if self.words == "classes" and file.parent != self.root:
            word = file.parent.name
        if not word.isprintable():
            raise ValueError("its name is not to be printed, and it has no other caption")
        return word


def some_of(total: int, most: int) -> list[int]:
    """`most` of the numbers below `total`, or all of fewer, in order.

    They are chosen at random, always in the same way, so that of pictures sorted by class they
    cover all classes.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    rows: list[int] = order[:most].sort().values.tolist()
    return rows


def list_pictures(path: str | Path, key: str, words: Words = "captions") -> Listing:
    """List the pictures at `path`.

    Args:
        path: A folder, searched through, or a picture, or a .tar.
        key: Key of the caption in a .json of a tar, and in metadata.
        words: Kind of the captions. If they are classes, a picture without another caption takes
            the name of its folder.

    Raises:
        ValueError: If there is no picture, or the metadata is malformed.
    """
    path = Path(path)
    folder = is_folder(path)
    if not path.exists():
        raise ValueError(f"data.pictures={shown(path)}: no such file or folder")
    if folder:
        root, found = path, walk(path)
    else:
        check_file(path, largest=2**60)
        root, found = path.parent, Found([path])
    files = tuple(file for file in found.files if file.suffix.lower() in KINDS)
    if not files:
        said = "".join(f"; {note}" for note in (*_unread(root, found), *found.notes))
        raise ValueError(f"data.pictures={shown(path)}: none of {', '.join(KINDS)} in it{said}")
    metadata = Metadata()
    if words != "none":
        metadata = read_metadata(root, found.files, key, classes=words == "classes")
    names = [file.relative_to(root).as_posix() for file in files]
    texts = metadata.matched(names)
    beside = {file.with_suffix(""): file for file in found.files if file.suffix.lower() in _BESIDE}
    digest = hashlib.sha256((key if words != "classes" else f"{key}\0classes").encode())
    for file in sorted({*files, *beside.values(), *metadata.files}):
        stat = file.stat()
        digest.update(b"\0" + os.fsencode(file.relative_to(root).as_posix()))
        digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    listing = Listing(root, files, texts, key, digest.hexdigest(), beside, words)
    notes = (*found.notes, *_unread(root, found), *_unmatched(listing, metadata))
    return replace(listing, notes=notes)


def _unread(root: Path, found: Found) -> list[str]:
    odd = [file.relative_to(root) for file in found.files if file.suffix.lower() in UNREAD]
    return [f"{len(odd)} files are of kinds that are not read: {few(odd)}"] if odd else []


def _unmatched(listing: Listing, metadata: Metadata) -> Iterator[str]:
    """Yield lines about rows without a picture, and pictures captioned by their file name."""
    if listing.words == "none":
        return
    where = few([listing.name(file) for file in metadata.files])
    lost = metadata.lost([*listing.texts])
    if lost:
        yield f"{len(lost)} rows of {where} match no picture: {few(lost)}"
    if metadata.twice:
        yield f"{len(metadata.twice)} pictures have two captions, the first counts: " + few(
            metadata.twice
        )
    alone = [
        listing.name(file)
        for file in listing.files
        if file.suffix.lower() in PICTURES
        and file.with_suffix("") not in listing.beside
        and listing.name(file) not in listing.texts
        and (listing.words == "captions" or file.parent == listing.root)
    ]
    if alone:
        rows = f"no row of {where}" if metadata.files else "no caption file"
        total = sum(file.suffix.lower() in PICTURES for file in listing.files)
        yield (
            f"{len(alone)} of {total} pictures match {rows}, so their names are their captions: "
            + few(alone)
        )


def _from_file(listing: Listing, file: Path) -> Iterator[Record]:
    def read() -> tuple[bytes, str]:
        check_file(file, LARGEST)
        return file.read_bytes(), "" if listing.words == "none" else listing.caption(file)

    yield Record(shown(listing.name(file)), read)


def _from_tar(listing: Listing, file: Path) -> Iterator[Record]:
    def read(sample: TarSample) -> tuple[bytes, str]:
        ending = sample.ending(*PICTURES)
        if ending is None:
            raise ValueError("no picture among " + few([*sample.members]))
        data = sample.members[ending]()
        if listing.words == "none":
            return data, ""
        return data, sample.caption(listing.key, classes=listing.words == "classes")

    def fail(error: Exception) -> tuple[bytes, str]:
        raise error

    tar = listing.name(file)
    try:
        for sample in read_samples(file):
            ends = [ending for ending in sample.members if ending.endswith(PICTURES)]
            name = f"{tar}/{sample.name}{ends[0] if len(ends) == 1 else ''}"
            yield Record(shown(name), partial(read, sample))
    except (OSError, tarfile.TarError) as error:
        yield Record(shown(tar), partial(fail, error))


KINDS: dict[str, Callable[[Listing, Path], Iterator[Record]]] = {
    **dict.fromkeys(PICTURES, _from_file),
    ".tar": _from_tar,
}
"""Readers of picture files and tars by file ending."""


class Codec:
    """Encoder of pictures to a teacher's x0, by its autoencoder where it has one.

    Raises:
        ValueError: If the teacher's x0 is neither a picture nor the latent of one.
    """

    def __init__(self, teacher: Teacher) -> None:
        vae: Any = teacher.autoencoder
        self.teacher, self.autoencoder = teacher, vae
        if len(teacher.sample_shape) != 3:
            raise ValueError(
                f"data.pictures: {teacher.family} teachers do not learn from pictures"
            )
        self.scaling = copy.deepcopy(teacher.scaling).cpu()
        self.factor, self.shift = self.scaling.factor, self.scaling.shift
        channels, height, width = teacher.sample_shape
        self.shape: tuple[int, int, int]
        if vae is None:
            self.shape = (channels, height, width)
            return
        config = dict(vae.config)
        blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
        ratio = 2 ** (len(blocks) - 1)
        self.shape = (config["in_channels"], ratio * height, ratio * width)

    def fingerprint(self) -> str:
        """Hash the autoencoder's class, configuration and weights by sha256; "" without one."""
        if self.autoencoder is None:
            return ""
        # Keys that start with "_" say where it was loaded from and by which version.
        config = {k: v for k, v in self.autoencoder.config.items() if not k.startswith("_")}
        words = f"{type(self.autoencoder).__name__} {json.dumps(config, sort_keys=True)}"
        digest = hashlib.sha256(words.encode())
        if self.scaling.mean is not None:  # the sha256 includes the mean only where one was given
            digest.update(json.dumps(self.scaling.describe()).encode())
        for name, value in sorted(self.autoencoder.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Encode pictures, uint8 (N, channels, height, width), to x0 (N, ...) on the CPU.

        The mode of an autoencoder's posterior is taken, so nothing is random.
        """
        values = to_float(pictures)
        if self.autoencoder is None:
            return self.scaling.inverse(values)
        device = next(self.teacher.net.parameters()).device
        home = next(self.autoencoder.parameters()).device  # train.offload keeps it elsewhere
        try:
            self.autoencoder.to(device)
            found = self.autoencoder.encode(values.to(device), return_dict=False)[0]
        finally:
            self.autoencoder.to(home)
        z: Tensor = found if isinstance(found, Tensor) else found.mode()
        return self.scaling.inverse(z.cpu())

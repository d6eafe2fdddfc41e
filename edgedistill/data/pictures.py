"""A person's own pictures: found on disk, read one at a time, made into a teacher's x0.

Folders in the layout of Hugging Face's imagefolder (`folders.py`) and webdataset shards
(`tars.py`). What is found is decided by names; what is in a file shows when it is read.
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
"""What a teacher reads with a picture."""

LARGEST = 256 * 2**20
"""Bytes of the largest picture file that is read."""

_BESIDE = (".txt", ".caption")
"""Ends of a caption's own file."""


@dataclass(frozen=True)
class Record:
    """One picture.

    Attributes:
        name: For messages.
        read: -> (bytes of the file, caption); raises one of `FAULTS`. It can be called until the
            next record is asked for.
    """

    name: str
    read: Callable[[], tuple[bytes, str]]


@dataclass(frozen=True)
class Listing:
    """Files that hold pictures, by name; none has been opened.

    Attributes:
        root: What names are relative to.
        files: Pictures and tars, sorted.
        texts: Captions by name, of the metadata.
        key: Of the caption in a .json of a tar.
        digest: sha256 of names, sizes, times of change and the key.
        beside: Files of captions by name of the picture without its ending.
        words: What a caption is.
        notes: Lines on what does not match, or was passed over.
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
        """Every picture in order; a tar that breaks off ends in a record that cannot be read."""
        for file in self.files:
            yield from KINDS[file.suffix.lower()](self, file)

    def some(self, most: int) -> tuple[Iterator[Record], int]:
        """`most` records as `some_of` chooses them, and how many there are in all."""
        total = sum(1 for _ in self.records())
        rows = set(some_of(total, most))
        return (record for i, record in enumerate(self.records()) if i in rows), total

    def name(self, file: Path) -> str:
        """Of a file, relative to the root."""
        return file.relative_to(self.root).as_posix()

    def caption(self, file: Path) -> str:
        """Of a picture file: its own file's, else its row's, else its class or its name."""
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

    They are chosen at random, always in the same way: of pictures that are sorted by class they
    are of all classes, as the first ones are not.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    rows: list[int] = order[:most].sort().values.tolist()
    return rows


def list_pictures(path: str | Path, key: str, words: Words = "captions") -> Listing:
    """What pictures there are at `path`.

    Args:
        path: A folder, searched through, or a picture, or a .tar.
        key: Of the caption in a .json of a tar, and in metadata.
        words: What a caption is. Where they are classes, the folder's name counts for a picture
            that has no other.

    Raises:
        ValueError: If there is nothing, or the metadata is not what it should be.
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
    """Lines on rows without a picture, and on pictures whose caption is their file's name."""
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
"""By ending, what is in a file."""


class Codec:
    """Pictures -> x0 of a teacher, by its autoencoder where it has one.

    Raises:
        ValueError: If x0 of the teacher is no picture nor the latent of one.
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
        """sha256 of the autoencoder's class, configuration and weights; "" without one."""
        if self.autoencoder is None:
            return ""
        # Names with "_" say where it was loaded from and by which version.
        config = {k: v for k, v in self.autoencoder.config.items() if not k.startswith("_")}
        words = f"{type(self.autoencoder).__name__} {json.dumps(config, sort_keys=True)}"
        digest = hashlib.sha256(words.encode())
        if self.scaling.mean is not None:  # which was not read once
            digest.update(json.dumps(self.scaling.describe()).encode())
        for name, value in sorted(self.autoencoder.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """uint8 (N, channels, height, width) -> x0 (N, ...) on the CPU.

        Of an autoencoder's posterior the mode is taken: nothing is random.
        """
        values = to_float(pictures)
        if self.autoencoder is None:
            return self.scaling.inverse(values)
        device = next(self.teacher.net.parameters()).device
        home = next(self.autoencoder.parameters()).device  # elsewhere with train.offload
        try:
            self.autoencoder.to(device)
            found = self.autoencoder.encode(values.to(device), return_dict=False)[0]
        finally:
            self.autoencoder.to(home)
        z: Tensor = found if isinstance(found, Tensor) else found.mode()
        return self.scaling.inverse(z.cpu())

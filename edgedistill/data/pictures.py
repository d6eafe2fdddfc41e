"""A person's own pictures: found on disk, read one at a time, made into a teacher's x0.

Folders in the layout of Hugging Face's imagefolder (huggingface.co/docs/datasets/image_dataset)
and webdataset shards. What is found is decided by names; what is in a file shows when it is read.
"""

from __future__ import annotations

import copy
import hashlib
import json
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from edgedistill.data.tars import read_samples, utf8
from edgedistill.teachers.base import Teacher
from edgedistill.teachers.latents import to_float

__all__ = ["FAULTS", "Codec", "Listing", "Record", "list_pictures", "read_picture"]

SMALLEST = 16
"""Pixels of the shorter side below which a picture is none."""

PICTURES = (".jpg", ".jpeg", ".png", ".webp")

FAULTS = (
    *(OSError, EOFError, SyntaxError, ValueError, struct.error),
    *(tarfile.TarError, Image.DecompressionBombError),
)
"""What reading a broken picture, caption or tar raises."""


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
        texts: Captions by name, of metadata.jsonl.
        key: Of the caption in a .json of a tar.
        digest: sha256 of names, sizes, times of change and the key.
    """

    root: Path
    files: tuple[Path, ...]
    texts: Mapping[str, str]
    key: str
    digest: str

    def records(self) -> Iterator[Record]:
        """Every picture in order; a tar that breaks off ends in a record that cannot be read."""
        for file in self.files:
            yield from KINDS[file.suffix.lower()](self, file)

    def name(self, file: Path) -> str:
        """Of a file, relative to the root."""
        return file.relative_to(self.root).as_posix()


def list_pictures(path: str | Path, key: str) -> Listing:
    """What pictures there are at `path`.

    Args:
        path: A folder, searched through, or a .tar.
        key: Of the caption in a .json of a tar.

    Raises:
        ValueError: If there is nothing, or metadata.jsonl is not what it should be.
    """
    path = Path(path)
    root = path if path.is_dir() else path.parent
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    if not path.exists():
        raise ValueError(f"data.pictures={path}: no such file or folder")
    seen = [file for file in found if not _hidden(file, root)]
    files = tuple(file for file in seen if file.suffix.lower() in KINDS and file.is_file())
    if not files:
        raise ValueError(f"data.pictures={path}: none of {', '.join(KINDS)} in it")
    metadata = root / "metadata.jsonl"
    texts = _metadata(metadata) if path.is_dir() and metadata.is_file() else {}
    digest = hashlib.sha256(key.encode())
    beside = [file for file in seen if file.suffix == ".txt" or file == metadata]
    for file in sorted([*files, *beside]):
        stat = file.stat()
        name = file.relative_to(root).as_posix()
        digest.update(f"\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return Listing(root, files, texts, key, digest.hexdigest())


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _metadata(file: Path) -> dict[str, str]:
    texts = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
            texts[name.strip()] = text.strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f'{file}: line {number} is not {{"file_name": ..., "text": ...}}'
            ) from None
    return texts


def _from_file(listing: Listing, file: Path) -> Iterator[Record]:
    def read() -> tuple[bytes, str]:
        beside, name = file.with_suffix(".txt"), listing.name(file)
        data = file.read_bytes()
        if beside.is_file():
            return data, utf8(beside.read_bytes()).strip()
        return data, listing.texts.get(name, file.stem)

    yield Record(listing.name(file), read)


def _from_tar(listing: Listing, file: Path) -> Iterator[Record]:
    def read(picture: Callable[[], bytes], caption: Callable[[str], str]) -> tuple[bytes, str]:
        return picture(), caption(listing.key)

    def fail(error: Exception) -> tuple[bytes, str]:
        raise error

    tar = listing.name(file)
    try:
        for sample in read_samples(file):
            ending = next((ending for ending in PICTURES if ending in sample.members), None)
            if ending is not None:
                name = f"{tar}/{sample.name}{ending}"
                yield Record(name, partial(read, sample.members[ending], sample.caption))
    except (OSError, tarfile.TarError) as error:
        yield Record(tar, partial(fail, error))


KINDS: dict[str, Callable[[Listing, Path], Iterator[Record]]] = {
    **dict.fromkeys(PICTURES, _from_file),
    ".tar": _from_tar,
}
"""By ending, what is in a file."""


def read_picture(data: bytes, channels: int, height: int, width: int) -> Tensor:
    """A picture (channels, height, width), uint8: cut at the centre to the shape, then scaled.

    It is turned as its EXIF says, and laid on white where it is transparent.

    Args:
        data: A JPEG, PNG or WebP file.
        channels: 1 (grey) or 3.
        height: Pixels.
        width: Pixels.

    Raises:
        ValueError: If it is smaller than `SMALLEST`, or not of 8 bits a channel.
        Exception: Others of `FAULTS`, if it is broken.
    """
    try:
        file = Image.open(BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except UnidentifiedImageError:
        raise ValueError("no JPEG, PNG or WebP") from None
    with file:
        if min(file.size) < SMALLEST:
            raise ValueError(f"{file.width} x {file.height} pixels")
        if file.mode.startswith(("I", "F")):
            raise ValueError(f"more than 8 bits a channel: mode {file.mode}")
        picture: Any = ImageOps.exif_transpose(file)
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        picture = picture.convert("L" if channels == 1 else "RGB")
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    values = np.array(picture, dtype=np.uint8).reshape(height, width, channels)
    return torch.from_numpy(values).permute(2, 0, 1)


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

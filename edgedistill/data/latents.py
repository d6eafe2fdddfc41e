"""x0 of a user's own pictures: encoded once into shards on disk, and drawn from many times.

CACHE/manifest.json               the `LatentSpec`: all of a teacher that decides an x0
CACHE/DIGEST/00000.safetensors    `x0` (n, ...), and the `pictures` (n, channels, height, width) in
                                  uint8 where a method asks for them; captions and what was skipped
                                  in the metadata, and the file's name and its sha256
CACHE/DIGEST/index.json           the number of shards, once all are there, and its own sha256

DIGEST is the hash of the spec and of the pictures' names, sizes and modification times, so that
runs may share a cache, and changed pictures get a new one. A shard is determined by the digest and
its number, so an interrupted run can be continued.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from edgedistill.common.files import check_writable, read_json, write_json
from edgedistill.common.hashes import is_signed, signed
from edgedistill.common.logs import WAITS
from edgedistill.common.progress import remark
from edgedistill.data.pictures import (
    FAULTS,
    Codec,
    Listing,
    Record,
    Words,
    list_pictures,
    read_picture,
)
from edgedistill.data.shards import fault_of, write_shard
from edgedistill.teachers.base import Teacher
from edgedistill.teachers.classes import ClassTeacher
from edgedistill.teachers.latents import Captioned, to_float

__all__ = ["CachedLatents", "LatentSpec", "Pictures", "find_pictures", "words_of"]

log = logging.getLogger(__name__)

SHARD = 2**24
"""Approximate number of values in a shard, 64 MiB of float32."""

MOST = 10**6
"""Largest number of shards in a cache."""

SCHEMA, INDEX = 2, "index.json"

NAMED = 3
"""Number of skipped pictures that the message names."""


@dataclass(frozen=True)
class LatentSpec:
    """The properties of a teacher that decide an x0.

    Attributes:
        autoencoder: sha256 of its configuration and weights; "" where x0 is the picture itself.
        shape: Channels, height and width of the pictures.
        factor: x0 = (z - shift) * factor, z what the autoencoder returns.
        shift: Offset in the formula of `factor`.
    """

    autoencoder: str
    shape: tuple[int, int, int]
    factor: float
    shift: float


class CachedLatents(Captioned):
    """x0 in memory-mapped shards, each row with a caption.

    Args:
        shards: x0 (n, ...) each; some may be empty.
        captions: Captions of all rows, in order.
        teacher: Encodes the captions.
        pictures: The encoded pictures of each shard, (n, channels, height, width) in uint8; None
            if not kept.
    """

    def __init__(
        self,
        shards: Sequence[Tensor],
        captions: Sequence[str],
        teacher: Teacher,
        pictures: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(captions, teacher)
        self.shards = list(shards)
        self.pictures = None if pictures is None else list(pictures)
        self._ends = torch.tensor([len(shard) for shard in shards]).cumsum(0)
        if len(captions) != self._ends[-1]:
            raise ValueError(f"{int(self._ends[-1])} latents but {len(captions)} captions")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `count` x0 and their encoded captions, drawn with replacement over all shards."""
        index = self._index(count, generator)
        return self._taken(self.shards, index), self._encoded(index, generator)

    def originals(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Return the original pictures of what `draw` gives for a generator in the same state."""
        if self.pictures is None:
            return None
        return to_float(self._taken(self.pictures, self._index(count, generator)))

    def _taken(self, shards: Sequence[Tensor], index: Tensor) -> Tensor:
        number = torch.bucketize(index, self._ends, right=True)
        rows = []
        for i, at in zip(index.tolist(), number.tolist(), strict=True):
            shard = shards[at]
            rows.append(shard[i - (int(self._ends[at]) - len(shard))])
        return torch.stack(rows)


class Pictures:
    """Pictures found for a teacher, and the cache of their x0.

    Args:
        listing: The pictures.
        codec: Encoder of the teacher's x0.
        cache: Folder of the cache; if it exists, it must hold this teacher's x0.
        record: A file that records the pictures a run began with.
        keep: Whether the cache also holds the pictures themselves.

    Raises:
        ValueError: If the cache is another teacher's, or must be written but cannot, or the run
            began with other pictures.
    """

    def __init__(
        self, listing: Listing, codec: Codec, cache: Path, record: Path, *, keep: bool = False
    ) -> None:
        self.listing, self.codec, self.teacher = listing, codec, codec.teacher
        self.record, self.keep = record, keep
        self.spec = LatentSpec(codec.fingerprint(), codec.shape, codec.factor, codec.shift)
        numbers = prod(self.teacher.sample_shape) + (prod(codec.shape) // 4 if keep else 0)
        self.rows = max(1, min(1024, SHARD // numbers))
        # A teacher that takes no prompts skips no picture for lack of a caption.
        words = (
            *(sorted(asdict(self.spec).items()), self.rows),
            *(bool(self.teacher.prompts), listing.digest),
            *(["pictures"] if keep else []),
        )
        self.digest = hashlib.sha256(repr(words).encode()).hexdigest()
        self.cache, self.folder = cache, cache / self.digest[:16]
        _check_cache(cache, self.spec)
        if record.is_file() and read_json(record).get("digest") != self.digest:
            raise ValueError(
                f"{listing.root}: pictures are not as they were when the run began: names, sizes "
                "or times of change differ"
            )
        self._hashed, self._whole = True, set[int]()
        if not (self.folder / INDEX).is_file():
            check_writable(cache / "manifest.json", f"data.cache={cache}")

    def open(self) -> CachedLatents:
        """Open the x0 of all readable pictures; missing ones are encoded first.

        Raises:
            ValueError: If no picture can be read, or the teacher does not know a caption.
            FloatingPointError: If the autoencoder's x0 are not finite.
        """
        for note in self.listing.notes:
            log.warning(f"{self.listing.root}: {note}", extra=WAITS)
        shards = self._indexed()
        if not shards or any(self._fault(number) for number in range(shards)):
            shards = self._make()
        x0, pictures, captions, skipped = [], [], [], []
        for number in range(shards):
            with safe_open(self._shard(number), "pt") as file:
                x0.append(file.get_tensor("x0"))  # a view of the mapped file
                if self.keep:
                    pictures.append(file.get_tensor("pictures"))
                metadata = file.metadata()
            captions += json.loads(metadata["captions"])
            skipped += json.loads(metadata["skipped"])
        faults = ", ".join(f"{name} ({why})" for name, why in skipped[:NAMED])
        faults += ", ..." if len(skipped) > NAMED else ""
        total = len(captions) + len(skipped)
        if not captions:
            raise ValueError(
                f"{self.listing.root}: none of {total} pictures can be read: {faults}"
                if total
                else f"{self.listing.root}: no pictures in its tars"
            )
        if skipped:
            log.warning(f"{len(skipped)} of {total} pictures skipped: {faults}", extra=WAITS)
        write_json(self.record, {"schema_version": 1, "digest": self.digest})
        return CachedLatents(x0, captions, self.teacher, pictures if self.keep else None)

    def _indexed(self) -> int:
        """Return the number of shards in the index; 0 if it is missing or cannot be trusted."""
        file = self.folder / INDEX
        if not file.is_file():
            return 0
        self._hashed, fault = True, ""
        try:
            data = read_json(file)
        except ValueError as error:
            data, fault = {}, str(error)
        shards, version = data.get("shards"), data.get("schema_version")
        if version == 1 and "sha256" not in data:
            remark(f"{file}: schema 1 has no hashes: damage to its shards is not seen")
            self._hashed = False
        elif not fault and (version != SCHEMA or not is_signed(data)):
            fault = f"{file}: damaged or changed: it is not what its sha256 says"
        if not (isinstance(shards, int) and 0 <= shards < MOST) or self._shard(shards).is_file():
            fault = fault or f"{file}: shards: {shards!r} is not their number"
        if fault:
            log.warning(f"{fault}; the pictures are counted again", extra=WAITS)
        return 0 if fault or not isinstance(shards, int) else shards

    def _shard(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def _make(self) -> int:
        """Write the shards that are missing or broken; return the number of all shards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.cache / "manifest.json", {"schema_version": 1, **asdict(self.spec)})
        records, done, number = self.listing.records(), 0, 0
        for number in count():
            first = next(records, None)
            if first is None:
                break
            piece, shard = chain([first], islice(records, self.rows - 1)), self._shard(number)
            fault = self._fault(number)
            if not fault:
                done += sum(1 for _ in piece)
                continue
            if shard.is_file():
                log.warning(f"{shard}: {fault}; made again", extra=WAITS)
            done += self._write(shard, piece)
            self._whole.add(number)
            log.info(f"pictures read {done}", extra=WAITS)
        # A folder of the first schema keeps it, since its shards have no hashes.
        data = {"schema_version": SCHEMA if self._hashed else 1, "shards": number}
        write_json(self.folder / INDEX, signed(data) if self._hashed else data)
        return number

    def _write(self, shard: Path, records: Iterator[Record]) -> int:
        """Write one shard; return the number of records it took."""
        channels, height, width = self.codec.shape
        together = max(1, min(64, 2**22 // (height * width)))
        x0 = [torch.empty(0, *self.teacher.sample_shape)]
        kept = [torch.empty(0, *self.codec.shape, dtype=torch.uint8)]
        captions: list[str] = []
        skipped: list[tuple[str, str]] = []
        waiting: list[Tensor] = []

        def encode() -> None:
            new = captions[len(captions) - len(waiting) :]
            if self.teacher.prompts:
                self.teacher.tokenize(new)  # refuses bad captions before a long encoding
            pictures = torch.stack(waiting)
            x0.append(self.codec.encode(pictures))
            if self.keep:
                kept.append(pictures)
            waiting.clear()

        for record in records:
            try:
                data, caption = record.read()
                if self.teacher.prompts and not caption:
                    raise ValueError("no caption")
                picture = read_picture(data, channels, height, width)
            except FAULTS as error:
                skipped.append((record.name, _reason(error)))
                continue
            waiting.append(picture)
            captions.append(caption)
            if len(waiting) == together:
                encode()
        if waiting:
            encode()
        made = torch.cat(x0)
        if not bool(made.isfinite().all()):
            raise FloatingPointError(f"{shard}: what the autoencoder returns is not finite")
        metadata = {"captions": json.dumps(captions), "skipped": json.dumps(skipped)}
        tensors = {"x0": made, **({"pictures": torch.cat(kept)} if self.keep else {})}
        write_shard(shard, tensors, {"digest": self.digest, "file": shard.name, **metadata})
        return len(captions) + len(skipped)

    def _fault(self, number: int) -> str:
        """Describe the fault of a shard, "" if there is none; a whole one is read only once."""
        if number in self._whole:
            return ""
        shard = self._shard(number)
        fault = fault_of(shard, "x0", hashed=self._hashed)
        if fault:
            return fault
        with safe_open(shard, "pt") as file:
            metadata = file.metadata() or {}
            shape = tuple(file.get_slice("x0").get_shape())
        if metadata.get("digest") != self.digest:
            fault = "of other pictures"
        elif self._hashed and metadata.get("file") != shard.name:
            fault = f"once {metadata.get('file')}, not {shard.name}"
        elif shape[1:] != self.teacher.sample_shape:
            fault = f"x0 of shape {shape[1:]}"
        else:
            self._whole.add(number)
        return fault


def find_pictures(
    teacher: Teacher, path: str, cache: Path, key: str, run: Path, *, keep: bool = False
) -> Pictures:
    """Find the pictures of a run and check them as far as possible without reading one.

    Args:
        teacher: The teacher that will learn from them.
        path: A folder or a .tar.
        cache: Folder of the x0 cache.
        key: Key of the caption in a .json of a tar.
        run: The run dir, which records the pictures.
        keep: Whether the pictures are kept with their x0.

    Raises:
        ValueError: If there are no pictures, the teacher takes none, or in the cases of
            `Pictures`.
    """
    record = run / "data" / "pictures.json"
    listing = list_pictures(path, key, words_of(teacher))
    return Pictures(listing, Codec(teacher), cache, record, keep=keep)


def words_of(teacher: Teacher) -> Words:
    """Return the kind of text that a teacher reads with a picture."""
    if not teacher.prompts:
        return "none"
    return "classes" if isinstance(teacher, ClassTeacher) else "captions"


def _check_cache(cache: Path, spec: LatentSpec) -> None:
    """Raise a ValueError if the cache belongs to another teacher."""
    file = cache / "manifest.json"
    if not file.is_file():
        return
    found = read_json(file)
    for name, ours in json.loads(json.dumps(asdict(spec))).items():
        if found.get(name) != ours:
            raise ValueError(
                f"{cache}: wrong latent cache: made with {name}={found.get(name)}, not {ours}; "
                "choose another data.cache"
            )


def _reason(error: Exception) -> str:
    """Return an error's reason in one line, without the name of the file."""
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(said).splitlines()[0]

"""Paths of the teacher's ODE from noise, kept at a grid of times: made once, drawn from often.

FOLDER/manifest.json        the `PathSpec` and its digest, how many paths there are, its own sha256
FOLDER/captions.json        captions, by index
FOLDER/00000.safetensors    `path` (n, K + 1, ...) and `caption` (n,), the digest, the file's name
                            and its sha256 in its metadata

A shard is determined by the spec and its number, so a folder can be continued and extended.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from edgedistill.common.files import read_json, write_json
from edgedistill.common.hashes import is_signed, signed
from edgedistill.common.logs import WAITS
from edgedistill.common.progress import remark
from edgedistill.data import recipe_prompts
from edgedistill.data.shards import fault_of, write_shard
from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.solvers import Denoise, solve
from edgedistill.diffusion.times import refine
from edgedistill.teachers.base import Teacher
from edgedistill.teachers.classes import ClassTeacher
from edgedistill.teachers.latents import Latents

__all__ = ["PathSpec", "Paths", "captions_of", "follow", "make_paths", "open_paths", "spec_of"]

log = logging.getLogger(__name__)

SCHEMA = 2

MAX_CAPTIONS = 2**30
"""Largest size of captions.json, in bytes."""

FIXED = ("teacher", "weights", "guidance")
"""Fields of the spec that must be equal for a run and its paths."""


@dataclass(frozen=True)
class PathSpec:
    """Everything that decides the paths, except their number.

    Attributes:
        teacher: Name of the teacher.
        weights: sha256 of the teacher's parameters and buffers.
        guidance: Guidance scale.
        solver: A key of `solvers.SOLVERS`.
        steps: Least number of solver steps; each interval of `times` is cut into equally many.
        times: Grid at which x is kept, decreasing to 0.
        seed: Seed of the noise.
        captions: sha256 of the captions.
    """

    teacher: str
    weights: str
    guidance: float
    solver: str
    steps: int
    times: tuple[float, ...]
    seed: int
    captions: str

    @property
    def digest(self) -> str:
        """sha256 of all fields."""
        return _sha256(repr(sorted(asdict(self).items())))

    def difference(self, other: PathSpec, names: Sequence[str]) -> str:
        """Return the first of `names` in which `other` differs, as "guidance=2, not 3"; or ""."""
        for name in names:
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                return f"{name}={ours}, not {theirs}"
        return ""


def spec_of(
    teacher: Teacher,
    captions: Sequence[str],
    *,
    guidance: float,
    solver: str,
    steps: int,
    times: Tensor,
    seed: int,
) -> PathSpec:
    """Make the spec of a loaded teacher's paths."""
    kept = tuple(times.tolist())
    weights = _weights(teacher.denoiser.net)
    found = _sha256("\0".join(captions))
    return PathSpec(teacher.name, weights, guidance, solver, steps, kept, seed, found)


def captions_of(teacher: Teacher, prompts: str | None, caption: str = "caption") -> list[str]:
    """Return a prompt file's captions, else those of the teacher's data or classes, else ""."""
    if prompts:
        return recipe_prompts(prompts, caption)
    own = teacher.source()
    if isinstance(own, Latents):
        return own.captions
    return teacher.each if isinstance(teacher, ClassTeacher) and teacher.each else [""]


# --- Making them --------------------------------------------------------------------------------


@torch.no_grad()
def follow(
    denoise: Denoise,
    noise: Tensor,
    times: Tensor,
    steps: int,
    cond: Condition,
    solver: str,
) -> Tensor:
    """Follow the ODE from noise (N, ...); return x at each of `times`, (N, K + 1, ...)."""
    grid = refine(denoise.schedule, times, -(-steps // (len(times) - 1)))
    kept, seen = times.tolist(), {}

    def look(x: Tensor, t: float) -> None:
        # A two-stage solver asks at its next time twice; the later call has the final x.
        if t in kept:
            seen[t] = x

    x0 = solve(_Watched(denoise, look), noise, grid, cond, solver)
    return torch.stack([*(seen[t] for t in kept[:-1]), x0], 1)


class _Watched:
    """A teacher that shows x and t of each call to a callback before it answers."""

    def __init__(self, denoise: Denoise, look: Callable[[Tensor, float], None]) -> None:
        self._denoise, self._look = denoise, look
        self.schedule, self.bound = denoise.schedule, denoise.bound

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> Tensor:
        self._look(x_t, float(t))
        return self._denoise(x_t, t, cond, net_time)

    def x0_and_eps(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._look(x_t, float(t))
        return self._denoise.x0_and_eps(x_t, t, cond, net_time)


def make_paths(
    folder: Path,
    teacher: Teacher,
    spec: PathSpec,
    captions: Sequence[str],
    count: int,
    progress: Callable[[int], None],
) -> None:
    """Write the paths, out of `count`, that `folder` lacks.

    Args:
        folder: Folder of the paths, new or continued.
        teacher: Teacher whose ODE is followed.
        spec: As from `spec_of`.
        captions: Path i has caption i, repeated in turn.
        count: Number of paths wanted; a folder that has more keeps them.
        progress: Called with the number of paths made so far, first with 0.

    Raises:
        ValueError: If the folder holds other paths; names the difference.
        FloatingPointError: If the teacher's paths are not finite.
    """
    file = folder / "manifest.json"
    schema = SCHEMA
    if file.is_file():
        old, there, schema = _read(folder)
        other = old.difference(spec, list(asdict(spec)))
        if other:
            raise ValueError(f"{folder} holds paths made with {other}; choose another folder")
        count = max(count, there)
    write_json(folder / "captions.json", {"captions": list(captions)})
    data = {"schema_version": schema, **asdict(spec), "digest": spec.digest, "samples": count}
    # A folder of the first schema keeps it, since its shards have no hashes.
    write_json(file, data if schema == 1 else signed(data))
    rows = _rows(teacher.sample_shape)
    progress(0)
    for number, start in enumerate(range(0, count, rows)):
        shard, size = folder / f"{number:05d}.safetensors", min(rows, count - start)
        shape = (size, len(spec.times), *teacher.sample_shape)
        fault = _fault(shard, spec, shape, hashed=schema > 1)
        if fault and shard.is_file():
            log.warning(f"{shard}: {fault}; made again", extra=WAITS)
        if fault:
            _make(shard, teacher, spec, captions, start, size)
        progress(start + size)


def _make(
    shard: Path, teacher: Teacher, spec: PathSpec, captions: Sequence[str], start: int, size: int
) -> None:
    rows = _rows(teacher.sample_shape)
    seed = np.random.SeedSequence([spec.seed, start // rows]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
    # Draw all of a shard's noise, so that a shard that grows keeps its first paths.
    noise = torch.randn(rows, *teacher.sample_shape, generator=generator)[:size]
    caption = torch.arange(start, start + size) % len(captions)
    cond = teacher.encode([captions[i] for i in caption.tolist()])
    net = teacher.denoiser.net
    device = next(iter([*net.parameters(), *net.buffers()])).device
    times = torch.tensor(spec.times, dtype=torch.float64)
    guided = teacher.guided(spec.guidance)
    path = follow(guided, noise.to(device), times, spec.steps, cond, spec.solver).cpu()
    if not bool(path.isfinite().all()):
        raise FloatingPointError(f"{shard}: the teacher's samples are not finite")
    write_shard(
        shard, {"path": path, "caption": caption}, {"spec": spec.digest, "file": shard.name}
    )


def _fault(shard: Path, spec: PathSpec, shape: tuple[int, ...], *, hashed: bool) -> str:
    """Describe the fault of a shard, "" if there is none."""
    fault = fault_of(shard, "path", hashed=hashed)
    if fault:
        return fault
    with safe_open(shard, "pt") as file:
        metadata = file.metadata() or {}
        found = tuple(file.get_slice("path").get_shape())
        names = file.keys()  # a safetensors file is no mapping: `in file` fails
        captions = file.get_tensor("caption") if "caption" in names else None
    if metadata.get("spec") != spec.digest:
        return "of other paths"
    if hashed and metadata.get("file") != shard.name:
        return f"once {metadata.get('file')}, not {shard.name}"
    if captions is None or captions.shape != found[:1]:
        return "no caption for each path"
    return "" if found == shape else f"{found[0]} paths, not {shape[0]}"


def _rows(shape: tuple[int, ...]) -> int:
    """Number of paths in a shard, which is one batch of the teacher's."""
    return max(1, min(1024, 2**20 // prod(shape)))


# --- Drawing them -------------------------------------------------------------------------------


class Paths:
    """Stored paths at a student's times; as a `Source` it gives their end points.

    Args:
        teacher: Encodes the captions.
        shards: Path tensors (n, K + 1, ...), with equally many rows in each but the last.
        caption: Index of each path's caption, (N,).
        captions: Captions by index.
        columns: Indices of the student's times among the stored ones.
    """

    def __init__(
        self,
        teacher: Teacher,
        shards: Sequence[Tensor],
        caption: Tensor,
        captions: Sequence[str],
        columns: Sequence[int],
    ) -> None:
        self.teacher, self.shards, self.caption = teacher, list(shards), caption
        self.captions, self.columns = list(captions), list(columns)

    def draw_paths(
        self, count: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw paths (count, K + 1, ...) with replacement, and their condition."""
        index = self._index(count, generator)
        rows = len(self.shards[0])
        shard, row = index // rows, index % rows
        path = self.shards[0].new_empty(count, len(self.columns), *self.shards[0].shape[2:])
        for number in sorted(set(shard.tolist())):
            here = shard == number
            path[here] = self.shards[number][row[here]][:, self.columns]
        wanted = self.caption[index].tolist()
        return path, self.teacher.encode([self.captions[i] for i in wanted])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw x0 (count, ...), the end points of paths."""
        path, cond = self.draw_paths(count, generator)
        return path[:, -1], cond

    def prompts(self, count: int, generator: torch.Generator) -> list[str]:
        """Return the captions of what `draw` gives for a generator in the same state."""
        return [self.captions[i] for i in self.caption[self._index(count, generator)].tolist()]

    def originals(self, count: int, generator: torch.Generator) -> None:
        """Return None, since the teacher made the samples."""

    def _index(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.caption), (count,), generator=generator)


def open_paths(folder: Path, teacher: Teacher, spec: PathSpec, times: Tensor) -> Paths:
    """Open the paths in `folder` at `times`, which must be among the stored times.

    Raises:
        ValueError: In one line, if the paths belong to another teacher or guidance scale, lack one
            of the times, or a shard is missing or broken.
    """
    found, count, schema = _read(folder)
    if schema == 1:
        remark(f"{folder}: schema 1 has no hashes: damage to its files is not seen")
    other = found.difference(spec, FIXED)
    if other:
        raise ValueError(f"data.paths={folder}: made with {other}")
    for t in times.tolist():
        if t not in found.times:
            grid = ", ".join(f"{kept:g}" for kept in found.times)
            raise ValueError(f"data.paths={folder}: kept at times {grid}, not at {t:g}")
    if found.times[0] != times[0]:
        raise ValueError(
            f"data.paths={folder}: from time {found.times[0]:g}, not from {float(times[0]):g}"
        )
    rows, shards, caption = _rows(teacher.sample_shape), [], []
    for number, start in enumerate(range(0, count, rows)):
        shard = folder / f"{number:05d}.safetensors"
        shape = (min(rows, count - start), len(found.times), *teacher.sample_shape)
        fault = _fault(shard, found, shape, hashed=schema > 1)
        if fault:
            raise ValueError(f"{shard}: {fault}; `edgedistill synth` makes it again")
        with safe_open(shard, "pt") as file:
            shards.append(file.get_tensor("path"))
            caption.append(file.get_tensor("caption"))
    captions = read_json(folder / "captions.json", MAX_CAPTIONS).get("captions")
    if not isinstance(captions, list) or _sha256("\0".join(map(str, captions))) != found.captions:
        raise ValueError(f"{folder / 'captions.json'}: not the captions of these paths")
    columns = [found.times.index(t) for t in times.tolist()]
    return Paths(teacher, shards, torch.cat(caption), captions, columns)


def _read(folder: Path) -> tuple[PathSpec, int, int]:
    """Read PathSpec, number and schema of a folder's paths; ValueError names what is wrong."""
    file = folder / "manifest.json"
    data = read_json(file)
    version = data.get("schema_version")
    if version not in (1, SCHEMA):
        raise ValueError(f"{file}: schema_version {version!r}, {SCHEMA} expected")
    try:
        count, digest = int(data["samples"]), data["digest"]
        values = {name: data[name] for name in PathSpec.__dataclass_fields__}
        spec = PathSpec(**{**values, "times": tuple(map(float, values["times"]))})
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{file}: missing or of a wrong kind: {error}") from None
    if digest != spec.digest or count < 1:
        raise ValueError(f"{file}: digest is not that of the rest")
    if version > 1 and not is_signed(data):
        raise ValueError(f"{file}: damaged or changed: it is not what its sha256 says")
    return spec, count, int(version)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _weights(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()

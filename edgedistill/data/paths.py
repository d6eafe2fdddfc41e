"""What the teacher's ODE makes of noise, kept at a grid of times: made once, drawn from often.

FOLDER/manifest.json        the `PathSpec` and its digest, how many paths there are, its own sha256
FOLDER/captions.json        captions, by index
FOLDER/00000.safetensors    `path` (n, K + 1, ...) and `caption` (n,), the digest, the file's name
                            and its sha256 in its metadata

A shard is decided by the spec and its number, so that a folder can be taken up again, and grow.
"""

from __future__ import annotations

import hashlib
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
from edgedistill.common.progress import remark
from edgedistill.data import read_prompts
from edgedistill.data.shards import fault_of, write_shard
from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.solvers import Denoise, solve
from edgedistill.diffusion.times import refine
from edgedistill.teachers.base import Teacher
from edgedistill.teachers.classes import ClassTeacher
from edgedistill.teachers.latents import Latents

__all__ = ["PathSpec", "Paths", "captions_of", "follow", "make_paths", "open_paths", "spec_of"]

SCHEMA = 2

MAX_CAPTIONS = 2**30
"""Bytes of the largest captions.json."""

FIXED = ("teacher", "weights", "guidance")
"""What a run's paths must have in common with the run."""


@dataclass(frozen=True)
class PathSpec:
    """All that decides the paths, besides how many there are.

    Attributes:
        teacher: Its name.
        weights: sha256 of its parameters and buffers.
        guidance: Guidance scale.
        solver: A key of `sampling.SOLVERS`.
        steps: Its steps at the least; each interval of `times` is cut into equally many.
        times: Grid at which x is kept, decreasing to 0.
        seed: Of the noise.
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
        """sha256 of all of it."""
        return _sha256(repr(sorted(asdict(self).items())))

    def difference(self, other: PathSpec, names: Sequence[str]) -> str:
        """The first of `names` in which `other` differs, "guidance=2, not 3"; "" if none does."""
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
    """The spec of a loaded teacher's paths."""
    kept = tuple(times.tolist())
    weights = _weights(teacher.denoiser.net)
    found = _sha256("\0".join(captions))
    return PathSpec(teacher.name, weights, guidance, solver, steps, kept, seed, found)


def captions_of(teacher: Teacher, prompts: str | None, caption: str = "caption") -> list[str]:
    """Captions of paths: a prompt file's, else the teacher's own data's or classes, else ""."""
    if prompts:
        return read_prompts(prompts, caption)
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
    """Where the ODE is at each of `times`, (N, K + 1, ...), of standard normal noise (N, ...)."""
    grid = refine(denoise.schedule, times, -(-steps // (len(times) - 1)))
    kept, seen = times.tolist(), {}

    def look(x: Tensor, t: float) -> None:
        # A solver that looks ahead asks at its next time twice, the second time at where it is.
        if t in kept:
            seen[t] = x

    x0 = solve(_Watched(denoise, look), noise, grid, cond, solver)
    return torch.stack([*(seen[t] for t in kept[:-1]), x0], 1)


class _Watched:
    """A teacher that shows x and t of each call before it answers."""

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
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> None:
    """Write those of `count` paths that `folder` lacks.

    Args:
        folder: Theirs, made or taken up again.
        teacher: Whose ODE is followed.
        spec: As from `spec_of`.
        captions: Path i has the i-th, over and over.
        count: Paths there shall be; a folder that has more keeps them.
        say: Called with a line for each broken shard, which is made again.
        progress: Called with the paths there are so far.

    Raises:
        ValueError: If other paths are in the folder; names the difference.
        FloatingPointError: If the teacher's are not finite.
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
    # A folder of the first schema stays one, as its shards have no hashes.
    write_json(file, data if schema == 1 else signed(data))
    rows = _rows(teacher.sample_shape)
    for number, start in enumerate(range(0, count, rows)):
        shard, size = folder / f"{number:05d}.safetensors", min(rows, count - start)
        shape = (size, len(spec.times), *teacher.sample_shape)
        fault = _fault(shard, spec, shape, hashed=schema > 1)
        if fault and shard.is_file():
            say(f"{shard}: {fault}; made again")
        if fault:
            _make(shard, teacher, spec, captions, start, size)
        progress(start + size)


def _make(
    shard: Path, teacher: Teacher, spec: PathSpec, captions: Sequence[str], start: int, size: int
) -> None:
    rows = _rows(teacher.sample_shape)
    seed = np.random.SeedSequence([spec.seed, start // rows]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
    # All of a shard's noise, so that one that grows keeps its first paths.
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
    """What is wrong with a shard, "" if nothing is."""
    fault = fault_of(shard, "path", hashed=hashed)
    if fault:
        return fault
    with safe_open(shard, "pt") as file:
        metadata = file.metadata() or {}
        found = tuple(file.get_slice("path").get_shape())
        captions = file.get_tensor("caption") if "caption" in file.keys() else None  # noqa: SIM118
    if metadata.get("spec") != spec.digest:
        return "of other paths"
    if hashed and metadata.get("file") != shard.name:
        return f"once {metadata.get('file')}, not {shard.name}"
    if captions is None or captions.shape != found[:1]:
        return "no caption for each path"
    return "" if found == shape else f"{found[0]} paths, not {shape[0]}"


def _rows(shape: tuple[int, ...]) -> int:
    """Paths a shard, which is one batch of the teacher's."""
    return max(1, min(1024, 2**20 // prod(shape)))


# --- Drawing them -------------------------------------------------------------------------------


class Paths:
    """Stored paths at a student's times. As a `Source` it gives their ends.

    Args:
        teacher: Encodes the captions.
        shards: Path tensors (n, K + 1, ...), as many rows in each but the last.
        caption: Caption of each path, (N,).
        captions: By index.
        columns: Which of the stored times are the student's.
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
        """Paths (count, K + 1, ...) and their condition, drawn with replacement."""
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
        """x0 (count, ...) at the ends of paths."""
        path, cond = self.draw_paths(count, generator)
        return path[:, -1], cond

    def prompts(self, count: int, generator: torch.Generator) -> list[str]:
        """Captions of what `draw` gives of a generator in the same state."""
        return [self.captions[i] for i in self.caption[self._index(count, generator)].tolist()]

    def originals(self, count: int, generator: torch.Generator) -> None:
        """None: the teacher made them."""

    def _index(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.caption), (count,), generator=generator)


def open_paths(folder: Path, teacher: Teacher, spec: PathSpec, times: Tensor) -> Paths:
    """The paths in `folder` at `times`, among those they were kept at.

    Raises:
        ValueError: One line, if they are another teacher's, of another guidance, lack one of the
            times, or a shard is missing or broken.
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
    """PathSpec, number and schema of a folder's paths; ValueError names what is wrong with it."""
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

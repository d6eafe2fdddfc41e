"""Proof that a teacher samples here as its own diffusers pipeline does.

Two guided steps from the same noise run in the pipeline's class, with the deterministic sibling of
its scheduler, and in our solver. Decoding, encoding and prompts are compared by
`input_differences`. A teacher is compared once; the result is cached by the hash of its files.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgedistill.common.files import read_json, write_json
from edgedistill.diffusion.solvers import solve
from edgedistill.proof.inputs import ASKED, input_differences, prompt_of
from edgedistill.teachers.base import Teacher
from edgedistill.teachers.families.flux import unpack
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.schedulers import sibling

__all__ = ["TOLERANCE", "differences", "prove"]

TOLERANCE = 1e-3
"""Largest difference from the pipeline, relative to the largest absolute value of its result."""

STEPS = 2
SCALE = 3.0
SEED = 0

Draw = Callable[[PipelineTeacher, str, Tensor, float], Tensor]
"""Function (teacher, prompt, noise (1, ...), guidance scale) -> the pipeline's result."""


def prove(teacher: Teacher, cache: Path | None = None) -> str:
    """Compare a teacher with its pipeline, unless these files were compared before.

    Args:
        teacher: A freshly loaded teacher, on any device.
        cache: Folder of earlier results; the user's cache folder by default.

    Returns:
        One line with the largest difference; "" for a teacher without a pipeline.

    Raises:
        ValueError: If the teacher's samples differ from its pipeline's; names what differs.
    """
    if not isinstance(teacher, PipelineTeacher):
        return ""
    folder = Path(cache or _cache_folder())
    file = folder / f"{_digest(teacher)}.json"
    found: dict[str, float] | None = None
    if file.is_file():
        found = {str(key): float(value) for key, value in read_json(file)["differences"].items()}
    if found is None:
        found = differences(teacher)
        _check(teacher, found)
        _keep(file, teacher, found)
    largest = max(found, key=lambda key: found[key])
    return (
        f"teacher {teacher.name} is drawn as diffusers draws it: {', '.join(sorted(found))} "
        f"within {found[largest]:.1e} of the range"
    )


def differences(teacher: PipelineTeacher) -> dict[str, float]:
    """Return the largest differences from the pipeline, relative to its largest absolute value.

    Returns:
        The difference "sample", and those of `input_differences`: "decode", "encode", "prompt".
    """
    with _sibling(teacher), torch.no_grad(), torch.random.fork_rng(devices=[]):
        return {**input_differences(teacher), "sample": _sample_difference(teacher)}


def _sample_difference(teacher: PipelineTeacher) -> float:
    prompt = prompt_of(teacher)
    scale = _scale(teacher)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(1, *teacher.sample_shape, generator=generator).to(teacher.device)
    theirs = DRAWS.get(teacher.family, _by_latents)(teacher, prompt, noise, scale)
    cond = teacher.encode([prompt])
    ours = solve(teacher.guided(scale), noise, teacher.grid(STEPS), cond)
    if teacher.family in PICTURES:
        ours = teacher.decode(ours).clamp(-1, 1)
    theirs = theirs.to(ours)
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def _scale(teacher: PipelineTeacher) -> float:
    """Return a guidance scale at which teacher and pipeline guide alike."""
    if teacher.family == "unet2d" or (teacher.family == "flux" and not _embeds(teacher)):
        return 1.0
    return SCALE


def _embeds(teacher: PipelineTeacher) -> bool:
    return bool(teacher.pipeline.transformer.config.guidance_embeds)


# --- How the pipelines are asked ----------------------------------------------------------------


def _asked(teacher: PipelineTeacher, prompt: str, noise: Tensor, scale: float) -> Any:
    """Return the result of the pipeline's call in `STEPS` steps from noise (1, ...)."""
    given = {**ASKED, **(teacher.asks(noise, prompt) or {})}
    given |= {"num_inference_steps": STEPS, "guidance_scale": scale, "output_type": "latent"}
    # A pipeline that takes no latents draws them from this seed, as our noise was drawn.
    given["generator"] = torch.Generator().manual_seed(SEED)
    if teacher.family in PICTURES:
        given["output_type"] = "np"
    taken = inspect.signature(type(teacher.pipeline).__call__).parameters
    try:
        return teacher.pipeline(**{key: value for key, value in given.items() if key in taken})[0]
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        kind, scheduler = (
            type(teacher.pipeline).__name__,
            type(teacher.pipeline.scheduler).__name__,
        )
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{teacher.path}: its own {kind} cannot draw with its {scheduler}: {first}"
        ) from error


def _by_latents(teacher: PipelineTeacher, prompt: str, noise: Tensor, scale: float) -> Tensor:
    """Return latents of a pipeline that takes and returns them."""
    result: Tensor = _asked(teacher, prompt, noise, scale)
    return result


def _by_tokens(teacher: PipelineTeacher, prompt: str, noise: Tensor, scale: float) -> Tensor:
    """Return FLUX's latents, which its pipeline packs into tokens."""
    return unpack(_asked(teacher, prompt, noise, scale), *noise.shape[-2:])


def _by_classes(teacher: PipelineTeacher, prompt: str, noise: Tensor, scale: float) -> Tensor:
    """Return DiT's pictures in [-1, 1]."""
    drawn = torch.from_numpy(_asked(teacher, prompt, noise, scale))
    return 2 * drawn.permute(0, 3, 1, 2) - 1


def _by_pixels(teacher: PipelineTeacher, prompt: str, noise: Tensor, scale: float) -> Tensor:
    """Return a pixel network's pictures in [-1, 1], sampled by its scheduler.

    The pipeline is not used, since diffusers' pixel pipelines take no class, and do not scale the
    input as EDM's schedulers need.
    """
    unet, scheduler = teacher.pipeline.unet, teacher.pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    cond = teacher.encode([prompt])
    x = noise.to(teacher.device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = unet(scheduler.scale_model_input(x, t), t, **cond).sample[:, : x.shape[1]]
        x = scheduler.step(output, t, x).prev_sample
    result: Tensor = x.clamp(-1, 1).expand(-1, 3, -1, -1)
    return result


DRAWS: dict[str, Draw] = {"dit": _by_classes, "flux": _by_tokens, "unet2d": _by_pixels}
"""Functions by family, where the pipeline cannot return latents."""

PICTURES = {"dit", "unet2d"}
"""Families whose pictures are compared, since their pipelines give no latents."""


@contextmanager
def _sibling(teacher: PipelineTeacher) -> Iterator[None]:
    """Put the pipeline on the teacher's device, its scheduler's sibling in it and its bar off."""
    pipeline = teacher.pipeline
    own, before = pipeline.scheduler, pipeline.device
    pipeline.to(teacher.device)  # offloaded parts may be elsewhere
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = sibling(own)
    try:
        yield
    finally:
        pipeline.scheduler = own
        if teacher.offload:
            pipeline.to(before)
            teacher.net.to(teacher.device)


# --- Once a teacher -----------------------------------------------------------------------------


def _check(teacher: PipelineTeacher, found: dict[str, float]) -> None:
    wrong = {key: value for key, value in found.items() if not value <= TOLERANCE}
    if wrong:
        said = ", ".join(f"{key} by {value:.2g}" for key, value in wrong.items())
        raise ValueError(
            f"{teacher.path}: not drawn as its own diffusers pipeline "
            f"({type(teacher.pipeline).__name__}, {type(teacher.pipeline.scheduler).__name__}) "
            f"draws it: {said} of the range; to train on it as it is, set teacher.verify=false"
        )


def _keep(file: Path, teacher: PipelineTeacher, found: dict[str, float]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"teacher": teacher.path, "differences": found})
    except OSError:
        return  # the teacher is compared again the next time


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(home) / "edgedistill" / "proofs"


def _digest(teacher: PipelineTeacher) -> str:
    """Hash configurations, sizes and dates of files, and versions of the libraries."""
    digest = hashlib.sha256()
    facts: list[Any] = [teacher.family, *map(version, ("edgedistill", "diffusers", "torch"))]
    facts.append(dict(teacher.pipeline.scheduler.config))
    path = Path(teacher.path)
    facts += [[str(file), scale, file.stat().st_mtime_ns] for file, scale in teacher.fused]
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        if file.suffix in (".json", ".txt"):
            digest.update(file.read_bytes())
        stat = file.stat()
        facts.append([str(file), stat.st_size, stat.st_mtime_ns])
    digest.update(json.dumps(facts, default=str).encode())
    return digest.hexdigest()

"""Measures a pipeline folder in torch, in a process of its own.

`python -m edgedistill.draw.bench FOLDER --steps N --guidance G --runs R --json FILE`
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.common.files import read_json
from edgedistill.compress.token_stride import KEY
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.teachers.hub import pipeline_at
from edgedistill.teachers.loading import BROKEN, reason
from edgedistill_runtime.bench import PROMPTS, command, peak_rss_mb, summary

__all__ = ["main", "measure"]

Draw = Callable[[str, int], None]

PARTS = {"text_encoder", "unet", "vae"}
"""Components of the pipelines that diffusers itself runs here, one prompt a call at their native
size. Other pipelines (no text, transformers, videos) are run by edgedistill, and so are students
whose attention has a stride."""


class _Stages:
    """Seconds spent in functions, summed by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, stage: str, owner: Any, method: str) -> None:
        """Account every call of owner.method to a stage."""
        inner = getattr(owner, method)
        self.seconds[stage] = 0.0

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = inner(*args, **kwargs)
            self.seconds[stage] += time.perf_counter() - start
            return result

        setattr(owner, method, timed)

    def time(self, draw: Callable[[], None]) -> dict[str, float]:
        """Time one call; return seconds by stage, "other" and "total"."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        start = time.perf_counter()
        draw()
        total = time.perf_counter() - start
        return self.seconds | {"other": total - sum(self.seconds.values()), "total": total}


def _load_pipeline(
    folder: str, steps: int, guidance: float, stages: _Stages
) -> tuple[Draw, float]:
    import diffusers

    index = Path(folder) / "model_index.json"
    name = read_json(index).get("_class_name") if index.is_file() else None
    # Use the pipeline's class name, so that its slow imports end before the clock starts.
    family = getattr(diffusers, name or "DiffusionPipeline")
    start = time.perf_counter()
    pipe = family.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    )
    load_s = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=True)
    stages.watch("text_encoder", pipe.text_encoder, "forward")
    stages.watch("denoiser", pipe.unet, "forward")
    stages.watch("decoder", pipe.vae, "decode")

    def draw(prompt: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        pipe(
            prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="np",
        )

    return draw, load_s


def _load_own(folder: str, steps: int, guidance: float, stages: _Stages) -> tuple[Draw, float]:
    """Load a student on its step table, or a teacher on its solver, by edgedistill itself."""
    from edgedistill.diffusion.denoiser import Condition
    from edgedistill.diffusion.solvers import solve
    from edgedistill.students.folder import load_student
    from edgedistill.teachers import load_teacher

    start = time.perf_counter()
    if (Path(folder) / "student.json").is_file():
        student = load_student(folder)
        teacher = student.teacher
        shapes = student.table.shapes(teacher.sample_shape)
        sample = student.table.sample
    else:
        teacher = load_teacher(_family(folder), folder)
        shapes = [teacher.sample_shape]
        denoise = teacher.guided(guidance)
        times = teacher.grid(steps)

        def sample(net: nn.Module, noise: Sequence[Tensor], cond: Condition) -> Tensor:
            return solve(denoise, noise[0], times, cond)

    load_s = time.perf_counter() - start
    graphs, known = teacher.graphs(), teacher.prompts
    for name, graph in graphs.items():
        stages.watch(name, graph.module, "forward")

    @torch.no_grad()
    def draw(prompt: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = [torch.randn(1, *shape, generator=generator) for shape in shapes]
        cond: dict[str, Tensor] = {}
        if "text_encoder" in graphs:  # Teacher.encode would use its cache
            encoder = graphs["text_encoder"]
            # For a teacher of classes, all prompts take equally long.
            tokens = teacher.tokenize([known[seed % len(known)]])
            found = encoder.module(*tokens.values())
            tensors = found if isinstance(found, tuple) else (found,)
            cond = dict(zip(encoder.outputs, tensors, strict=True))
        x0 = sample(graphs["denoiser"].module, noise, cond)
        if "decoder" in graphs:
            graphs["decoder"].module(x0)

    return draw, load_s


def _index(folder: str) -> dict[str, Any]:
    """Read model_index.json of a folder or Hub id; {} for a student that is no pipeline."""
    from diffusers import DiffusionPipeline

    if Path(folder).is_dir() and not (Path(folder) / "model_index.json").is_file():
        return {}
    return dict(DiffusionPipeline.load_config(folder))


def _family(folder: str) -> str:
    from edgedistill.teachers.loading import FAMILIES

    kind = _index(folder).get("_class_name")
    if kind not in FAMILIES:
        raise ValueError(f"{folder}: no family reads a {kind}")
    return FAMILIES[kind]


def _own_steps(folder: str) -> int | None:
    """Read the number of steps of a student dir; None for other folders."""
    file = Path(folder) / "student.json"
    if not file.is_file():
        return None
    table = read_json(file).get("step_table")
    if not isinstance(table, dict):
        raise ValueError(f"{file}: step_table: missing")
    try:
        return len(TorchStepTable.from_json(table).rows)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _has_stride(folder: str) -> bool:
    """Whether the folder is a student's whose attention diffusers alone would run in full."""
    file = Path(folder) / "student.json"
    return file.is_file() and read_json(file).get(KEY) is not None


def measure(folder: str, steps: int | None, guidance: float, runs: int) -> dict[str, Any]:
    """Load a folder and time drawing one sample a call.

    Args:
        folder: A diffusers pipeline folder or Hub id, or any student dir.
        steps: Scheduler steps; by default a student's own, else 25.
        guidance: Guidance scale; 1 is none.
        runs: Number of timed calls.

    Returns:
        `load_s`, `first_s`, `p50_s`, `p90_s`, `p99_s`, `stages`, `peak_rss_mb`, `steps` and
        `guidance`.

    Raises:
        ValueError: If the folder cannot be loaded.
    """
    stages, folder = _Stages(), pipeline_at(folder)
    steps = steps or _own_steps(folder) or 25
    try:
        plain = _index(folder).keys() >= PARTS and not _has_stride(folder)
        load = _load_pipeline if plain else _load_own
        draw, load_s = load(folder, steps, guidance, stages)
    except BROKEN as error:
        raise ValueError(f"cannot load {folder!r}: {reason(error, folder)}") from error

    def timings(index: int) -> dict[str, float]:
        return stages.time(lambda: draw(PROMPTS[index % len(PROMPTS)], index))

    figures = summary(timings, runs)
    return {
        "load_s": load_s,
        **figures,
        "peak_rss_mb": peak_rss_mb(),
        "steps": steps,
        "guidance": guidance,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a folder from the command line; the exit code is 2 if it cannot be loaded."""
    parser = argparse.ArgumentParser(prog="edgedistill.draw.bench", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, help="a student's own if left out, else 25")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int)

    def figures(args: argparse.Namespace) -> dict[str, Any]:
        if args.threads:
            torch.set_num_threads(args.threads)
        return measure(args.folder, args.steps, args.guidance, args.runs)

    return command(parser, argv, figures)


if __name__ == "__main__":
    sys.exit(main())

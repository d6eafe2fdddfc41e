"""Measures a pipeline folder in torch, in a process of its own.

`python -m edgedistill.bench_subject FOLDER --steps N --guidance G --runs R --json FILE`
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["main", "measure"]

Draw = Callable[[str, int], None]


class _Stages:
    """Seconds spent in functions, by stage."""

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
        """Seconds of one call by stage, "other" and "total"."""
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
    name = json.loads(index.read_text("utf-8"))["_class_name"] if index.is_file() else None
    # By its own name, so that its slow imports are over before the clock starts.
    family = getattr(diffusers, name or "DiffusionPipeline")
    start = time.perf_counter()
    pipe = family.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
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


def _load_samples(folder: str, stages: _Stages) -> tuple[Draw, float]:
    from edgedistill.student import load_student

    start = time.perf_counter()
    student = load_student(folder)
    load_s = time.perf_counter() - start
    stages.watch("denoiser", student.net, "forward")

    def draw(prompt: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = student.table.draw((1, *student.teacher.sample_shape), generator)
        student.sample(student.teacher.encode([prompt]), noise)

    return draw, load_s


def _own_steps(folder: str) -> int | None:
    """Steps of a student dir; None for other folders."""
    file = Path(folder) / "student.json"
    if not file.is_file():
        return None
    return len(json.loads(file.read_text("utf-8"))["step_table"]["rows"])


def measure(folder: str, steps: int | None, guidance: float, runs: int) -> dict[str, Any]:
    """Load a folder and draw one sample a call.

    Args:
        folder: A diffusers pipeline folder or Hub id, or any student dir.
        steps: Scheduler steps; by default a student's own, else 25.
        guidance: Guidance scale; 1 is none.
        runs: Calls measured.

    Returns:
        `load_s`, `first_s`, `p50_s`, `p90_s`, `p99_s`, `stages`, `peak_rss_mb`, `steps` and
        `guidance`.

    Raises:
        ValueError: For a folder that cannot be loaded.
    """
    from edgedistill_runtime.bench import PROMPTS, peak_rss_mb, summary

    stages = _Stages()
    steps = steps or _own_steps(folder) or 25
    planar = Path(folder).is_dir() and not (Path(folder) / "model_index.json").is_file()
    try:
        draw, load_s = (
            _load_samples(folder, stages)
            if planar
            else _load_pipeline(folder, steps, guidance, stages)
        )
    except OSError as error:
        raise ValueError(f"cannot load {folder!r}: {str(error).splitlines()[0]}") from error

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
    """Measure a folder from the command line; exit status 2 for one that cannot be loaded."""
    parser = argparse.ArgumentParser(prog="edgedistill.bench_subject", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, help="a student's own if left out, else 25")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="file to write; standard output if left out")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        figures = measure(args.folder, args.steps, args.guidance, args.runs)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    text = json.dumps(figures, indent=2) + "\n"
    if args.json:
        args.json.write_text(text, "utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

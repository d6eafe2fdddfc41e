"""`edgedistill generate`: draw with a student or a bundle, from the runtime's portable noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.evaluate.subjects import Noise, Subject, bundle_subject, student_subject
from edgedistill.report.pictures import grid, scatter
from edgedistill.student import load_student

__all__ = ["generate", "open_subject", "runtime_noise"]


def runtime_noise() -> Noise:
    """The runtime's noise, so that student and bundle draw the same pictures."""
    from edgedistill_runtime.noise import noise

    return noise


def open_subject(path: str | Path) -> tuple[Subject, bool]:
    """A student or bundle by its folder, and whether it takes prompts.

    Raises:
        ValueError: If the folder is neither, or broken; names the file.
    """
    folder = Path(path)
    if (folder / "manifest.json").is_file():
        from edgedistill_runtime import Pipeline

        pipeline = Pipeline.load(folder)
        return bundle_subject(
            f"bundle:{folder.resolve().name}", pipeline
        ), pipeline.tokenizer is not None
    student = load_student(folder)
    takes_prompts = bool(student.teacher.prompts)
    return student_subject("student", student, runtime_noise()), takes_prompts


def generate(source: str, prompt: str | None, *, seed: int, count: int, out: Path) -> None:
    """Draw `count` samples and write them: .npy holds (N, ...), .png a grid or a scatter plot.

    Raises:
        ValueError: For a prompt missing or too many, or another kind of file.
    """
    if out.suffix not in (".npy", ".png"):
        raise ValueError(f"--out {out}: a .png or .npy file expected")
    subject, takes_prompts = open_subject(source)
    if takes_prompts and prompt is None:
        raise ValueError(f"{source} draws from a prompt; say what to draw")
    if not takes_prompts and prompt is not None:
        raise ValueError(f"{source} takes no prompt, got {prompt!r}")
    given = count if prompt is None else [prompt] * count
    drawn = subject.draw(given, seed, lambda done: None)
    try:
        _write(out, drawn)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot write there: {error.strerror}") from None


def _write(out: Path, drawn: NDArray[Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part{out.suffix}")
    if out.suffix == ".npy":
        np.save(part, drawn)
    elif drawn.ndim == 4:
        grid(drawn).save(part)
    else:
        scatter(drawn).savefig(part, dpi=110)
    part.rename(out)

"""`edgedistill generate`: draw with a student or a bundle, from the runtime's portable noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.common.files import atomic_file, check_writable, recover
from edgedistill.common.pictures import grid, scatter
from edgedistill.data.prompts import tell_weights
from edgedistill.draw.subjects import (
    Subject,
    bundle_subject,
    helped_subject,
    steered_subject,
    student_subject,
)
from edgedistill.draw.teacher_help import ALONE, TeacherAssistance
from edgedistill.students.folder import Student
from edgedistill.students.group import Students, open_student
from edgedistill.teachers import Teacher, load_teacher
from edgedistill_runtime import Pipeline, Router
from edgedistill_runtime.hub import local_folder
from edgedistill_runtime.noise import noise

__all__ = ["Negative", "draw_samples", "generate", "open_subject"]


@dataclass(frozen=True)
class Negative:
    """A negative prompt that a student's attention moves away from, and its scale (0 or more)."""

    prompt: str
    scale: float


def open_subject(
    path: str | Path, given: TeacherAssistance = ALONE, negative: Negative | None = None
) -> tuple[Subject, bool]:
    """Open a student or bundle by its folder; also return whether it takes prompts.

    Args:
        path: The folder.
        given: Help by the student's teacher, which is loaded if there is any.
        negative: A negative prompt; only students take one.

    Raises:
        ValueError: If the folder is neither a student nor a bundle, or is broken; names the file.
    """
    folder, helped = local_folder(path), given != ALONE
    recover(folder)
    bundles = (folder / "0" / "manifest.json").is_file()
    if bundles or (folder / "manifest.json").is_file():
        if helped:
            raise ValueError(f"{path}: a bundle has no teacher; name the student")
        if negative:
            raise ValueError(
                f"{path}: --negative needs the student; the attention of a bundle is fixed"
            )
        pipeline = Router(folder, keep_all=True) if bundles else Pipeline.load(folder)
        return bundle_subject(
            f"bundle:{folder.resolve().name}", pipeline
        ), pipeline.tokenizer is not None
    student = open_student(folder)
    if isinstance(student, Students):
        if helped or negative:
            raise ValueError(f"{path}: several students; name one, as {student.path / '0'}")
        return student_subject("students", student, noise), True
    takes_prompts = bool(student.teacher.prompts)
    if negative:
        if helped:
            raise ValueError("a negative prompt is for a student without its teacher's help")
        if not takes_prompts:
            raise ValueError(f"{path} takes no prompt, so no negative one")
        words = (negative.prompt, negative.scale, noise)
        return steered_subject("student", student, *words), takes_prompts
    if helped:
        subject = helped_subject(
            "student with teacher", student, teacher_of(student), given, noise
        )
        return subject, takes_prompts
    return student_subject("student", student, noise), takes_prompts


def teacher_of(student: Student) -> Teacher:
    """Load the teacher that a student's folder names; ValueError if it is not there."""
    named = student.info.teacher
    if not named.get("path"):
        raise ValueError(f"{student.path}: names no teacher")
    family = str(named.get("family", student.info.family))
    loras = [(str(file), float(scale)) for file, scale in named.get("lora") or ()]
    return load_teacher(family, str(named["path"]), named.get("config"), loras)


def draw_samples(
    source: str,
    prompt: str | None,
    *,
    seed: int,
    count: int,
    given: TeacherAssistance = ALONE,
    negative: Negative | None = None,
) -> NDArray[Any]:
    """Draw pictures (N, H, W, 3) in uint8, or points (N, D) in float32.

    Args:
        source: Folder of a student or bundle.
        prompt: Prompt; None for subjects that take none.
        seed: Seed; together with it, sample i depends on i alone.
        count: Number of samples.
        given: Help by the student's teacher.
        negative: Negative prompt of the student's attention.

    Raises:
        ValueError: If a prompt is missing or not taken, or the folder is neither a student nor a
            bundle.
    """
    subject, takes_prompts = open_subject(source, given, negative)
    if takes_prompts and prompt is None:
        raise ValueError(f"{source} draws from a prompt; say what to draw")
    if not takes_prompts and prompt is not None:
        raise ValueError(f"{source} takes no prompt, got {prompt!r}")
    tell_weights([text for text in (prompt, negative and negative.prompt) if text])
    asked = count if prompt is None else [prompt] * count
    return subject.draw(asked, seed, lambda done: None)


def generate(
    source: str,
    prompt: str | None,
    *,
    seed: int,
    count: int,
    out: Path,
    given: TeacherAssistance = ALONE,
    negative: Negative | None = None,
) -> None:
    """Draw as `draw_samples` and write a file: .npy holds (N, ...), .png a grid or a plot.

    Raises:
        ValueError: As in `draw_samples`, or if the file has another ending or cannot be written.
    """
    if out.suffix not in (".npy", ".png"):
        raise ValueError(f"--out {out}: a .png or .npy file expected")
    check_writable(out, f"--out {out}")
    drawn = draw_samples(source, prompt, seed=seed, count=count, given=given, negative=negative)
    with atomic_file(out) as made:
        if out.suffix == ".npy":
            np.save(made, drawn)
        elif drawn.ndim == 4:
            grid(drawn).save(made)
        else:
            scatter(drawn).savefig(made, dpi=110)

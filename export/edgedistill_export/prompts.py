"""Prompts for comparing a bundle with its student, and for calibrating quantization."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgedistill import assets
from edgedistill.common.files import read_json
from edgedistill.data import read_prompts
from edgedistill.students.folder import Student

__all__ = ["calibration_prompts", "home_of_teacher", "parity_prompts"]


def home_of_teacher(student: Student) -> Path | None:
    """Return the folder of a student's teacher, if it is on this machine."""
    named = str(student.info.teacher.get("path") or "")
    found = [path for path in (assets.ROOT / named, Path(named)) if named and path.is_dir()]
    return found[0] if found else None


def parity_prompts(student: Student, count: int) -> list[str]:
    """Return the recipe's first prompts, the teacher's preview prompts, or known ones, cycled."""
    return _cycled(_recipe(student) or _shipped(student, "grid") or _known(student), count)


def calibration_prompts(student: Student, count: int) -> list[str]:
    """Return prompts spread over the recipe's, the teacher's training captions, or known ones.

    Raises:
        ValueError: If `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"calibration needs at least one prompt, got {count}")
    lines = _recipe(student) or _shipped(student, "train") or _known(student)
    if len(lines) < count:
        return _cycled(lines, count)
    return [lines[i * len(lines) // count] for i in range(count)]


def _known(student: Student) -> Sequence[str]:
    # A student without text still draws one sample for each prompt.
    return student.teacher.prompts or ("",)


def _cycled(lines: Sequence[str], count: int) -> list[str]:
    return [lines[i % len(lines)] for i in range(count)]


def _recipe(student: Student) -> Sequence[str]:
    data = student.info.recipe.get("data") or {}
    named = data.get("prompts")
    if not named or not Path(named).exists():
        return ()
    return read_prompts(named, data.get("caption") or "caption")


def _shipped(student: Student, kind: str) -> Sequence[str]:
    home = home_of_teacher(student)
    file = home / "prompts.json" if home else None
    if file is None or not file.is_file():
        return ()
    return list(read_json(file).get(kind) or ())

"""Students that are evaluated: saved from a teacher as it is, a few steps of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny import save

from edgedistill.common.progress import bar
from edgedistill.evaluation.run import evaluate_subjects
from edgedistill.evaluation.tables import notes, tables
from edgedistill.teachers import load_teacher

__all__ = ["STEPS", "evaluated", "make_student"]

STEPS = 2


def make_student(
    run: Path, family: str, teacher: Path, words: Mapping[str, Any] | None = None, **sections: Any
) -> Path:
    """A student that is its teacher, few steps of it.

    Args:
        run: The run dir; the student is in it.
        family: Of the teacher.
        teacher: Its folder.
        words: What student.json says besides.
        sections: Of its recipe.
    """
    loaded = load_teacher(family, teacher)
    recipe = {
        "name": "test",
        "teacher": {"family": family, "path": str(teacher), "steps": 3},
        "evaluate": {"samples": 6, "batch_size": 4},
        **sections,
    }
    changes = {"recipe": recipe, **(words or {})}
    prediction = loaded.denoiser.prediction
    return save(run / "student", loaded, loaded.net, prediction, STEPS, changes=changes)


def evaluated(
    student: Path, samples: int | None = None, features: str | None = None
) -> dict[str, Any]:
    """eval.json of a student, which is strict JSON that can be shown."""
    with bar("evaluate", 1) as meter:
        figures, file = evaluate_subjects([str(student)], samples, None, None, meter, features)
    assert json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail) == figures
    assert len(tables(figures)) > 0
    assert all(isinstance(line, str) for line in notes(figures))
    return figures

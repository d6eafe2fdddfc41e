"""Captions for an evaluation, by kind, in the words of the student's training data."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from edgedistill.common.files import read_json
from edgedistill.data import read_prompts
from edgedistill.data.latents import words_of
from edgedistill.data.pictures import FAULTS, list_pictures
from edgedistill.evaluation.data import Data
from edgedistill.recipes.schema import EvaluationRecipe
from edgedistill.teachers import Teacher
from edgedistill.teachers.classes import ClassTeacher

__all__ = ["class_names", "label_of", "prompt_sets", "run_captions", "shown_captions"]

FEW = 256
"""Number of pictures whose captions are searched for ones to show."""


def prompt_sets(
    teacher: Teacher, prompts: Sequence[str] | None, trained: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Return captions by kind: "seen" in training, and others where the teacher ships them.

    "unseen" holds combinations of caption and style that were never trained, "open" captions that
    fit many pictures, "pairs" two concepts in one caption.

    Args:
        teacher: The teacher, whose folder's prompts.json is read; without one its classes, or the
            prompts that edgedistill knows for every teacher, are used.
        prompts: The user's own captions instead.
        trained: Captions of the user's own data, which take precedence over the teacher's.

    Returns:
        Captions by kind; empty for a teacher that takes no prompts.

    Raises:
        ValueError: If there are prompts for such a teacher.
    """
    if not teacher.prompts:
        if prompts is not None:
            raise ValueError(f"--prompts: teacher {teacher.name!r} takes no prompts")
        return {}
    if prompts is not None:
        return {"seen": list(prompts)}
    if trained:
        return {"seen": list(trained)}
    file = Path(teacher.path) / "prompts.json"
    if not file.is_file():
        return {"seen": class_names(teacher) or list(teacher.prompts)}
    shipped = read_json(file)
    kinds = {"seen": "train", "unseen": "unseen", "open": "open", "pairs": "pairs"}
    return {kind: shipped[key] for kind, key in kinds.items() if key in shipped}


def run_captions(recipe: EvaluationRecipe, teacher: Teacher, data: Data | None) -> list[str]:
    """Return captions of the run's own pictures or prompts; none where it had no own data.

    They are shuffled, always in the same way, since the first pictures of sorted data would all be
    of one class.
    """
    if not teacher.prompts:
        return []
    if recipe.data.pictures is not None and data is not None:
        return _shuffled([caption for caption in data.captions if caption])
    named = recipe.data.prompts
    if named is None or not Path(named).exists():
        return []
    return _shuffled(read_prompts(named, recipe.data.caption))


def _shuffled(lines: Sequence[str]) -> list[str]:
    order = list(lines)
    random.Random(0).shuffle(order)
    return order


def shown_captions(recipe: EvaluationRecipe, teacher: Teacher) -> list[str]:
    """Return captions that show a student's training: the user's, else the teacher's own.

    These are the captions of the run's pictures or prompts, else the grid of the teacher's
    prompts.json, else its classes, else prompts that edgedistill knows.
    """
    pictures = recipe.data.pictures is not None
    own = _few(recipe, teacher) if pictures else run_captions(recipe, teacher, None)
    if own:
        return list(dict.fromkeys(own))
    file = Path(teacher.path) / "prompts.json"
    if file.is_file():
        return list(read_json(file)["grid"][:64])
    return class_names(teacher) or list(teacher.prompts)


def _few(recipe: EvaluationRecipe, teacher: Teacher) -> list[str]:
    """Return the captions of up to `FEW` pictures."""
    named = str(recipe.data.pictures)
    if not Path(named).exists():
        return []
    found = []
    records, _ = list_pictures(named, recipe.data.caption, words_of(teacher)).some(FEW)
    for record in records:
        try:
            found.append(record.read()[1])
        except FAULTS:
            continue  # training has reported it
    return [caption for caption in found if caption]


def class_names(teacher: Teacher) -> list[str]:
    """Return a prompt for each class of a class-conditional teacher; none for other teachers.

    If only some classes have names, the others are left out: one of them may be the null class of
    guidance.
    """
    if not isinstance(teacher, ClassTeacher):
        return []
    each = teacher.each
    named = [name for name in each if name != str(teacher.classes[name])]
    return named or each


def label_of(teacher: Teacher) -> Callable[[str], str | None] | None:
    """Return a function from a caption to its class's name, or None if it is no class.

    Returns:
        The function; None for a teacher without classes.
    """
    names = class_names(teacher)
    if not names or not isinstance(teacher, ClassTeacher):
        return None
    numbers = teacher.classes
    first = {numbers[name]: name for name in names}
    return lambda caption: first.get(numbers.get(caption, -1))

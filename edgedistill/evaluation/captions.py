"""What subjects are asked to draw: captions by kind, in the words of who trained the student."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from edgedistill.common.files import read_json
from edgedistill.data import read_prompts
from edgedistill.data.latents import words_of
from edgedistill.data.pictures import FAULTS, list_pictures
from edgedistill.evaluation.data import Data
from edgedistill.recipes.schema import Judged
from edgedistill.teachers import Teacher
from edgedistill.teachers.classes import ClassTeacher

__all__ = ["class_names", "label_of", "prompt_sets", "run_captions", "shown_captions"]

FEW = 256
"""Pictures whose captions are looked at for what is shown."""


def prompt_sets(
    teacher: Teacher, prompts: Sequence[str] | None, trained: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Captions by kind: "seen" in training, and others where the teacher ships them.

    "unseen" holds combinations of caption and style that were never trained, "open" captions that
    many pictures answer, "pairs" two concepts in one caption.

    Args:
        teacher: Its folder's prompts.json is read; without one its classes, or the prompts that
            edgedistill knows for every teacher, are what is asked for.
        prompts: The user's own captions instead.
        trained: Captions of the user's own data, which go before those of the teacher.

    Returns:
        Nothing for a teacher that takes no prompts.

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


def run_captions(recipe: Judged, teacher: Teacher, data: Data | None) -> list[str]:
    """Captions of the run's own pictures or prompts; none where it had no data of its own.

    They are shuffled, always in the same way: the first of data that are sorted by class would
    all be of one class.
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


def shown_captions(recipe: Judged, teacher: Teacher) -> list[str]:
    """Captions that show what a teacher's student learned: the user's, else the teacher's own.

    The words of the run's pictures or prompts, else the grid of the teacher's prompts.json, else
    its classes, else prompts that edgedistill knows.
    """
    pictures = recipe.data.pictures is not None
    own = _few(recipe, teacher) if pictures else run_captions(recipe, teacher, None)
    if own:
        return list(dict.fromkeys(own))
    file = Path(teacher.path) / "prompts.json"
    if file.is_file():
        return list(read_json(file)["grid"][:64])
    return class_names(teacher) or list(teacher.prompts)


def _few(recipe: Judged, teacher: Teacher) -> list[str]:
    """Captions of some pictures, as many as are looked at."""
    named = str(recipe.data.pictures)
    if not Path(named).exists():
        return []
    found = []
    records, _ = list_pictures(named, recipe.data.caption, words_of(teacher)).some(FEW)
    for record in records:
        try:
            found.append(record.read()[1])
        except FAULTS:
            continue  # training has named it
    return [caption for caption in found if caption]


def class_names(teacher: Teacher) -> list[str]:
    """A prompt for each class of a class-conditional teacher; none of others.

    Where some classes have names, those alone: one without may be the null class of guidance.
    """
    if not isinstance(teacher, ClassTeacher):
        return []
    each = teacher.each
    named = [name for name in each if name != str(teacher.classes[name])]
    return named or each


def label_of(teacher: Teacher) -> Callable[[str], str | None] | None:
    """A function from a caption to the name of its class, None for one that is no class.

    Returns:
        None for a teacher without classes.
    """
    names = class_names(teacher)
    if not names or not isinstance(teacher, ClassTeacher):
        return None
    numbers = teacher.classes
    first = {numbers[name]: name for name in names}
    return lambda caption: first.get(numbers.get(caption, -1))

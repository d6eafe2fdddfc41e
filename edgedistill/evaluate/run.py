"""`edgedistill evaluate`: which subjects, which captions, and where the figures go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from edgedistill.data import read_prompts
from edgedistill.evaluate.evaluate import evaluate_pictures, evaluate_planar, prompt_sets
from edgedistill.evaluate.pictures import Features, Reference, features_of
from edgedistill.evaluate.subjects import Subject, student_subject, teacher_subject
from edgedistill.files import read_json, write_json
from edgedistill.generate import open_subject, runtime_noise
from edgedistill.progress import Bar
from edgedistill.recipe import Judged, judged
from edgedistill.student import Student
from edgedistill.students import Students, open_student
from edgedistill.teachers import Teacher, load_teacher
from edgedistill.teachers.mixture import Mixture

__all__ = ["TITLES", "evaluate_subjects", "tables"]


def evaluate_subjects(
    paths: Sequence[str],
    samples: int | None,
    prompts: Path | None,
    json: Path | None,
    meter: Bar,
    features: str | None = None,
) -> tuple[dict[str, Any], Path]:
    """Evaluate a student, and bundles beside it, against the teacher.

    Beside the student stand the teacher as the recipe guides it and, at equal network calls, the
    teacher at as many steps without guidance and with it. The figures go to `json` or the run's
    eval.json, and into the student's student.json. `features` is the CLIP model that judges, by
    default the recipe's.

    Raises:
        ValueError: If a path is neither student nor bundle, its student is not to be found, or
            they are of different students.
    """
    extra, student = _open(paths[0])
    for path in paths[1:]:
        more, other = _open(path)
        if other.path.resolve() != student.path.resolve():
            raise ValueError(
                f"{path} is of the student {other.path}, {paths[0]} of {student.path}"
            )
        extra += more
    recipe = judged(student.info.recipe)
    if features:
        judge = recipe.evaluate.model_copy(update={"features": features})
        recipe = recipe.model_copy(update={"evaluate": judge})
    teacher = load_teacher(recipe.teacher.family, recipe.teacher.path, recipe.teacher.config)
    subjects = [*_subjects(recipe, teacher, student), *extra]
    count = samples or recipe.evaluate.samples

    def progress(name: str, done: int, total: int) -> None:
        index = next((i for i, s in enumerate(subjects) if s.name == name), 0)
        meter.step(index * total + done, total * len(subjects), name)

    if isinstance(teacher, Mixture):
        results = evaluate_planar(subjects, teacher, count, recipe.evaluate.seed, progress)
    else:
        eye, reference = _eye(recipe, teacher, own_captions=prompts is not None)
        captions = prompt_sets(teacher, read_prompts(prompts) if prompts else None)
        results = evaluate_pictures(
            subjects, captions, eye, reference, count, recipe.evaluate.seed, progress
        )
    file = json or student.path.parent / "eval.json"
    write_json(file, results)
    if not prompts and isinstance(student, Student):
        _record(student, results["student"])
    return results, file


def _open(path: str) -> tuple[list[Subject], Student | Students]:
    folder = Path(path)
    several = (folder / "0" / "manifest.json").is_file()
    if not several and not (folder / "manifest.json").is_file():
        return [], open_student(folder)
    subject, _ = open_subject(folder)
    beside = "students/students.json" if several else "student/student.json"
    for home in (folder.parent, *folder.resolve().parents):
        if (home / beside).is_file():
            return [subject], open_student((home / beside).parent)
    raise ValueError(f"{folder}: no student folder beside this bundle to evaluate it against")


def _subjects(recipe: Judged, teacher: Teacher, student: Student | Students) -> list[Subject]:
    section, noise = recipe.teacher, runtime_noise()
    steps = len(student.table.rows)
    wanted = [("teacher", section.guidance, section.steps)]
    wanted.append((f"teacher@{steps}", 1.0, steps))
    if section.guidance != 1:
        wanted.append((f"teacher@{2 * steps}", section.guidance, steps))
    batch = recipe.evaluate.batch_size if not isinstance(teacher, Mixture) else 100_000
    made = [
        teacher_subject(
            name, teacher, noise, guidance=guidance, steps=n, solver=section.solver, batch=batch
        )
        for name, guidance, n in wanted
    ]
    return [made[0], student_subject("student", student, noise, batch), *made[1:]]


def _eye(
    recipe: Judged, teacher: Teacher, own_captions: bool
) -> tuple[Features, Reference | None]:
    """The CLIP model, and statistics of real data where they ship with the teacher."""
    path = features_of(teacher, recipe.evaluate.features, "--features or evaluate.features")
    file = Path(teacher.path) / "reference.safetensors"
    usable = file.is_file() and not own_captions and not recipe.evaluate.features
    return Features(path), Reference.load(file) if usable else None


def _record(student: Student, figures: dict[str, Any]) -> None:
    file = student.path / "student.json"
    write_json(file, {**read_json(file), "evaluation": figures})


def tables(results: dict[str, Any]) -> list[Table]:
    """Figures for a terminal: one table a kind of captions, a row a subject."""
    subjects = {name: r for name, r in results.items() if isinstance(r, dict)}
    first = next(iter(subjects.values()))
    kinds = [key for key, value in first.items() if isinstance(value, dict)]
    shown = [_table("figures" if not kinds else TITLES["seen"], subjects)]
    for kind in kinds:
        rows = {name: {"calls": r["calls"], **r[kind]} for name, r in subjects.items()}
        shown.append(_table(TITLES.get(kind, kind), rows))
    return shown


TITLES = {
    "seen": "captions seen in training",
    "unseen": "caption and style never seen together",
    "open": "captions that many pictures answer",
    "pairs": "two concepts in one caption",
}
HEADS = {
    "text_image_score": "text-image",
    "text_image_ratio": "text-image ratio",
    "retrieval_top1": "top 1",
    "samples": "n",
}


def _table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    columns = [
        key for key, value in next(iter(rows.values())).items() if not isinstance(value, dict)
    ]
    table = Table(title=title, box=None, header_style="bold", title_justify="left")
    table.add_column("subject", no_wrap=True)
    for column in columns:
        table.add_column(HEADS.get(column, column.replace("_", " ")), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

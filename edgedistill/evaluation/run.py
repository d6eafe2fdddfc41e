"""`edgedistill evaluate`: choose subjects and captions, and write the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from edgedistill.common.files import check_writable, from_here, read_json, write_json
from edgedistill.common.progress import Bar
from edgedistill.data import read_prompts
from edgedistill.diffusion.solvers import FIRST_ORDER
from edgedistill.draw.generate import open_subject
from edgedistill.draw.kept import Kept, fingerprint
from edgedistill.draw.subjects import Subject, student_subject, teacher_subject
from edgedistill.evaluation.captions import label_of, prompt_sets, run_captions
from edgedistill.evaluation.data import find_data
from edgedistill.evaluation.evaluate import Examples, Extras, evaluate_pictures, evaluate_planar
from edgedistill.evaluation.examples import write_examples
from edgedistill.evaluation.features import open_features
from edgedistill.evaluation.fidelity import Reference
from edgedistill.recipes.loading import evaluation_recipe
from edgedistill.recipes.schema import EvaluationRecipe
from edgedistill.students.folder import Student
from edgedistill.students.group import Students, open_student
from edgedistill.teachers import Teacher, load_teacher
from edgedistill.teachers.families.mixture import Mixture
from edgedistill_runtime.noise import noise

__all__ = ["EXAMPLES", "evaluate_subjects", "keeper"]


def evaluate_subjects(
    paths: Sequence[str],
    samples: int | None,
    prompts: Path | None,
    json: Path | None,
    meter: Bar,
    features: str | None = None,
) -> tuple[dict[str, Any], Path]:
    """Evaluate a student, and bundles beside it, against the teacher.

    The student is compared with the teacher as the recipe guides it and, at equal network calls,
    with the teacher at as many steps without guidance and with it. The figures go to `json` or the
    run's eval.json, and into the student's student.json; example pictures to evaluation/examples
    beside the run's eval.json, and the teacher's samples to evaluation/kept, where the next
    evaluation finds them. `features` names the feature network, by default the recipe's
    `evaluate.features`.

    Raises:
        ValueError: If a path is neither student nor bundle, its student cannot be found, they
            belong to different students, or a file of figures cannot be written.
        FloatingPointError: If a picture or a figure is not finite; names it.
    """
    extra, student = _open(paths[0])
    for path in paths[1:]:
        more, other = _open(path)
        if other.path.resolve() != student.path.resolve():
            raise ValueError(
                f"{path} is of the student {other.path}, {paths[0]} of {student.path}"
            )
        extra += more
    home = student.path.parent
    file = json or home / "eval.json"
    check_writable(file, f"--json {file}")
    recorded = isinstance(student, Student) and not prompts and _recordable(student, json)
    recipe = evaluation_recipe(student.info.recipe)
    if features:
        chosen = recipe.evaluate.model_copy(update={"features": features})
        recipe = recipe.model_copy(update={"evaluate": chosen})
    section = recipe.teacher
    teacher = load_teacher(section.family, section.path, section.config, section.loras)
    kept = None if isinstance(teacher, Mixture) else keeper(home, teacher)
    subjects = [*_subjects(recipe, teacher, student, kept), *extra]
    count, seed = samples or recipe.evaluate.samples, recipe.evaluate.seed

    def progress(name: str, done: int, total: int) -> None:
        index = next((i for i, s in enumerate(subjects) if s.name == name), 0)
        meter.step(index * total + done, total * len(subjects), name)

    if isinstance(teacher, Mixture):
        scale = section.guidance
        results = evaluate_planar(subjects, teacher, count, seed, progress, scale)
    else:
        own = read_prompts(prompts) if prompts else None
        results, examples = _pictures(recipe, teacher, subjects, own, count, progress)
        if json is None:
            write_examples(home / EXAMPLES, examples.nearest, examples.worst)
    if isinstance(student, Student):
        results["student_sha256"] = student.sha256
    write_json(file, results)
    if recorded and isinstance(student, Student):
        _record(student, results["student"])
    return results, file


EXAMPLES, KEPT = "evaluation/examples", "evaluation/kept"
"""Folders beside eval.json."""


BEST = "dpm++2m"
"""Solver of the teacher at few calls, besides its own."""


def keeper(home: Path, teacher: Teacher) -> Callable[..., Kept] | None:
    """Return a maker of `Kept` for a teacher's settings; None where nothing can be written.

    Args:
        home: The run dir.
        teacher: Teacher whose samples are kept.
    """
    try:
        check_writable(home / KEPT / "x", str(home / KEPT))
    except ValueError:
        return None
    words = (fingerprint(teacher), teacher.denoiser.schedule.to_json())
    return partial(Kept, home / KEPT, *words)


def _pictures(
    recipe: EvaluationRecipe,
    teacher: Teacher,
    subjects: Sequence[Subject],
    own: list[str] | None,
    count: int,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[str, Any], Examples]:
    data, missing = find_data(recipe, teacher)
    captions = prompt_sets(teacher, own, run_captions(recipe, teacher, data))
    eye = open_features(teacher, recipe.evaluate.features)
    extras = Extras(data, memory_only=own is not None, label=label_of(teacher))
    statistics = None if own is not None else _shipped(recipe, teacher)
    section = recipe.evaluate
    results, examples = evaluate_pictures(
        subjects, captions, eye, statistics, count, section.seed, progress, extras
    )
    notes = results["about"]["notes"]
    if missing:
        notes.append(missing)
    if len(teacher.sample_shape) == 4:
        notes.append("A video is judged as the sheet of its frames.")
    return results, examples


def _open(path: str) -> tuple[list[Subject], Student | Students]:
    folder = Path(path)
    several = (folder / "0" / "manifest.json").is_file()
    if not several and not (folder / "manifest.json").is_file():
        return [], open_student(folder)
    subject, _ = open_subject(folder)
    beside = "students/students.json" if several else "student/student.json"
    for home in (folder.parent, *map(from_here, folder.resolve().parents)):
        if (home / beside).is_file():
            return [subject], open_student((home / beside).parent)
    raise ValueError(f"{folder}: no student folder beside this bundle to evaluate it against")


def _subjects(
    recipe: EvaluationRecipe,
    teacher: Teacher,
    student: Student | Students,
    kept: Callable[..., Kept] | None,
) -> list[Subject]:
    section = recipe.teacher
    steps = len(student.table.rows)
    wanted = [("teacher", section.guidance, section.steps, section.solver)]
    guided = [] if section.guidance == 1 else [section.guidance]
    # In one step a solver of second order is one of first order.
    better = [BEST] if steps > 1 and section.solver in FIRST_ORDER else []
    for guidance, solver in product([1.0, *guided], [section.solver, *better]):
        name = f"teacher@{steps if guidance == 1 else 2 * steps}"
        wanted.append(
            (name if solver == section.solver else f"{name} {solver}", guidance, steps, solver)
        )
    batch = recipe.evaluate.batch_size if not isinstance(teacher, Mixture) else 100_000
    made = [
        teacher_subject(
            name,
            teacher,
            noise,
            guidance=guidance,
            steps=n,
            solver=solver,
            batch=batch,
            kept=kept,
        )
        for name, guidance, n, solver in wanted
    ]
    return [made[0], student_subject("student", student, noise, batch), *made[1:]]


def _shipped(recipe: EvaluationRecipe, teacher: Teacher) -> Reference | None:
    """Load statistics of the teacher's real data in the features of its shipped model."""
    file = Path(teacher.path) / "reference.safetensors"
    usable = recipe.evaluate.features is None and recipe.data.pictures is None
    return Reference.load(file) if file.is_file() and usable else None


def _recordable(student: Student, json: Path | None) -> bool:
    """Whether figures can be written to student.json too; they need not be if `json` is given."""
    file = student.path / "student.json"
    try:
        check_writable(file, str(file))
    except ValueError:
        if json is None:
            raise
        return False
    return True


def _record(student: Student, figures: dict[str, Any]) -> None:
    file = student.path / "student.json"
    write_json(file, {**read_json(file), "evaluation": figures})

"""The report: one self-contained HTML page about a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray
from PIL import Image

from edgedistill.common.decibels import EQUAL_DB, decibels
from edgedistill.common.files import check_writable, read_json, write_text
from edgedistill.common.progress import visible_lines
from edgedistill.draw.generate import open_subject
from edgedistill.draw.subjects import Subject, student_subject, teacher_subject
from edgedistill.evaluation.captions import shown_captions
from edgedistill.evaluation.run import EXAMPLES, keeper
from edgedistill.evaluation.tables import TITLES, cell, columns_of, heading, notes, sections
from edgedistill.recipes.loading import evaluation_recipe
from edgedistill.recipes.schema import EvaluationRecipe
from edgedistill.reporting.age import KEY, Outdated, outdated
from edgedistill.reporting.charts import clouds, curves, tradeoff
from edgedistill.reporting.embed import LARGEST, array_uri, image_uri
from edgedistill.reporting.health import Finding, findings, sparkline
from edgedistill.reporting.verdict import Facts, explained, verdict
from edgedistill.students.folder import Student, load_student
from edgedistill.teachers import Teacher, load_teacher
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.training.metrics import read_metrics
from edgedistill_runtime.noise import noise

__all__ = ["home_of", "write_report"]

log = logging.getLogger(__name__)

PICTURES, POINTS, SEED = 24, 4000, 7
SHOWN = {"name", "path", "family", "guidance", "licences"}
"""Keys of a student's teacher entry that are not notes on licences and safety."""


def write_report(run: Path, out: Path) -> Path:
    """Write the page.

    Args:
        run: A run dir with a student, or a student, whose run dir is the folder that it is in;
            bundles, bench.json, eval.json and evaluation/examples are shown where present.
        out: The page.

    Raises:
        ValueError: If the run has no student; names the file.
    """
    check_writable(out, str(out))
    student, run = load_student(run), home_of(run)
    recipe = evaluation_recipe(student.info.recipe)
    section = recipe.teacher
    teacher = load_teacher(section.family, section.path, section.config, section.loras)
    subjects, captions = _subjects(run, recipe, student, teacher), _captions(recipe, teacher)
    drawn = []
    for subject in subjects:
        log.info(f"report: {subject.name} draws")
        given = captions if teacher.prompts else len(captions)
        drawn.append(subject.draw(given, SEED, lambda done: None))
    environment = Environment(
        loader=PackageLoader("edgedistill.reporting"),
        autoescape=select_autoescape(),
        finalize=visible_lines,
    )
    environment.filters.update(
        cell=lambda value, column: cell(column, value), db=decibels, zip=zip
    )
    planar = isinstance(teacher, Mixture)
    names = [subject.name for subject in subjects]
    parity, bench, evaluation = _parity(run), _bench(run), _json(run / "eval.json")
    old = outdated(student.sha256, parity, evaluation, _json(run / "bench.json"))
    page = environment.get_template("report.html").render(
        recipe=recipe,
        info=student.info,
        recipe_text=_recipe_text(run),
        verdict=verdict(_facts(run, student, subjects, parity, evaluation, old)),
        outdated=old,
        seed=SEED,
        rows=[] if planar else _rows(captions, drawn),
        clouds=clouds(names, drawn) if planar else [],
        size=0 if planar else _shown_size(drawn[0]),
        pixelated=not planar and max(drawn[0].shape[1:3]) <= 32,
        subjects=[{"name": s.name, "calls": s.calls} for s in subjects],
        examples=_examples(run / EXAMPLES),
        roles=_roles(run),
        curves=curves(run),
        health=[(finding, sparkline(finding)) for finding in _health(run, student.info.recipe)],
        bench=bench,
        tables=_tables(evaluation, planar),
        planar=planar,
        notes=notes(evaluation) if evaluation else [],
        tradeoff=tradeoff(run),
        parity=parity,
        about_teacher=_about_teacher(student.info.teacher),
    )
    write_text(out, page)
    return out


def home_of(run: Path) -> Path:
    """Return the run dir of a run dir or of a student in it, where figures and the page lie."""
    inside = (run / "student.json").is_file()
    return Path(os.path.normpath(run / os.pardir)) if inside else run


def _subjects(
    run: Path, recipe: EvaluationRecipe, student: Student, teacher: Teacher
) -> list[Subject]:
    section = recipe.teacher
    subjects = [
        teacher_subject(
            "teacher",
            teacher,
            noise,
            guidance=section.guidance,
            steps=section.steps,
            solver=section.solver,
            kept=None if isinstance(teacher, Mixture) else keeper(student.path.parent, teacher),
        ),
        student_subject("student", student, noise),
    ]
    for manifest in sorted(run.glob("bundles/*/manifest.json")):
        subjects.append(open_subject(manifest.parent)[0])
    return subjects


def _captions(recipe: EvaluationRecipe, teacher: Teacher) -> list[str]:
    """Return the captions to draw: spread over those known, or "" for subjects without prompts."""
    if not teacher.prompts:
        return [""] * (POINTS if isinstance(teacher, Mixture) else PICTURES)
    if isinstance(teacher, Mixture):
        return [teacher.prompts[i % len(teacher.prompts)] for i in range(POINTS)]
    known = shown_captions(recipe, teacher)
    count = min(PICTURES, len(known))
    spread = [known[i * len(known) // count] for i in range(count)]
    return spread * (PICTURES // count)


def _rows(captions: Sequence[str], drawn: Sequence[NDArray[Any]]) -> list[dict[str, Any]]:
    """Make a row for each caption: its picture by each subject."""
    return [
        {"caption": caption, "pictures": [array_uri(images[i]) for images in drawn]}
        for i, caption in enumerate(captions)
    ]


def _shown_size(pictures: NDArray[Any]) -> int:
    """Return the side in pixels of a picture in the page."""
    return 72 if max(pictures.shape[1:3]) <= 96 else 128


def _recipe_text(run: Path) -> str:
    file = run / "recipe.yaml"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _json(file: Path) -> dict[str, Any] | None:
    return read_json(file) if file.is_file() else None


def _facts(
    run: Path,
    student: Student,
    subjects: Sequence[Subject],
    parity: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    old: Outdated,
) -> Facts:
    info, folders = student.info, {"student": student.path}
    folders |= {check["name"]: run / "bundles" / check["name"] for check in parity}
    return Facts(
        teacher=str(info.teacher.get("name") or "its teacher"),
        steps=len(student.table.rows),
        calls=subjects[0].calls,
        evaluation=evaluation,
        bench=_json(run / "bench.json"),
        parity={check["name"]: check for check in parity},
        sizes={name: _bytes(folder) for name, folder in folders.items()},
        outdated=old,
    )


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _examples(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the example pictures that `evaluate` wrote."""
    listed = _json(folder / "examples.json") or {}
    return {
        kind: [{**row, **_sides(folder, row)} for row in listed.get(kind, [])]
        for kind in ("nearest", "worst")
    }


def _sides(folder: Path, row: Mapping[str, Any]) -> dict[str, str]:
    return {
        side: image_uri(Image.open(folder / Path(row[side]).name), LARGEST)
        for side in ("left", "right")
    }


def _health(run: Path, recipe: Mapping[str, Any]) -> list[Finding]:
    return findings(read_metrics(run), recipe.get("student", {}).get("sampler", "renoise"))


def _roles(run: Path) -> str | None:
    """Return the last picture of what each role made of one noised sample."""
    drawn = sorted((run / "samples").glob("roles-*.png"))
    return image_uri(Image.open(drawn[-1])) if drawn else None


def _bench(run: Path) -> dict[str, Any] | None:
    results, chart = _json(run / "bench.json"), run / "bench.png"
    if results is None:
        return None
    subjects = {k: v for k, v in results.items() if isinstance(v, dict) and "p50_s" in v}
    return {
        "subjects": subjects,
        "speedups": results["speedup_over_teacher"],
        "machine": results.get("machine", {}),
        "chart": image_uri(Image.open(chart)) if chart.is_file() else None,
    }


def _tables(results: Mapping[str, Any] | None, planar: bool) -> list[dict[str, Any]]:
    """Return the tables of eval.json: title, columns, one row a subject, and explanations."""
    found, shown = [], set[str]()
    for title, rows in sections(results) if results else ():
        columns = columns_of(rows)
        if planar and title == TITLES["to_teacher"]:
            title = "distance to the teacher's sample, at equal noise"
        if title == TITLES["spread"] and not {"fd_interval", "kid_interval"} & set(columns):
            title = "quality and variety apart"
        words = [text for text in explained(columns, planar) if text not in shown]
        shown.update(words)
        heads = [(column, heading(column)) for column in columns]
        found.append({"title": title, "columns": heads, "rows": rows, "words": words})
    return found


def _parity(run: Path) -> list[dict[str, Any]]:
    manifests = [
        (file.parent.name, read_json(file)) for file in run.glob("bundles/*/manifest.json")
    ]
    return [
        {
            "name": name,
            **manifest["parity"],
            "identical": manifest["parity"]["final"]["worst"] >= EQUAL_DB,
            KEY: (manifest.get("student") or {}).get("sha256"),
        }
        for name, manifest in sorted(manifests)
    ]


def _about_teacher(teacher: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return licences and other notes on the teacher's terms and safety."""
    licences = teacher.get("licences") or []
    found = [("licences", ", ".join(map(str, licences)) or "none is named in the teacher's card")]
    for key, value in teacher.items():
        if key not in SHOWN and value not in (None, "", [], {}):
            words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((key.replace("_", " "), words))
    return found

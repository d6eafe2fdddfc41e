"""The report: one self-contained HTML page about a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from edgedistill.distill import preview_prompts
from edgedistill.evaluate.subjects import Subject, student_subject, teacher_subject
from edgedistill.evaluate.tables import columns_of, sections
from edgedistill.files import read_json, write_text
from edgedistill.generate import open_subject, runtime_noise
from edgedistill.metrics import read_metrics
from edgedistill.recipe import Judged, judged
from edgedistill.report.health import Finding, findings, sparkline
from edgedistill.report.pictures import scatter
from edgedistill.student import load_student
from edgedistill.teachers import load_teacher

__all__ = ["write_report"]

PICTURES, POINTS, SEED = 24, 4000, 7


def write_report(run: Path, out: Path, say: Callable[[str], None]) -> Path:
    """Write the page.

    Args:
        run: A run dir with a student, or a student; bundles, bench.json and eval.json are shown
            where present.
        out: The page.
        say: Called with a line at each stage.

    Raises:
        ValueError: If the run has no student; names the file.
    """
    student = load_student(_student_of(run))
    recipe = judged(student.info.recipe)
    subjects, prompts = _subjects(run, recipe)
    drawn = []
    for subject in subjects:
        say(f"report: {subject.name} draws")
        given = prompts or POINTS
        drawn.append(subject.draw(given, SEED, lambda done: None))
    environment = Environment(
        loader=PackageLoader("edgedistill.report"), autoescape=select_autoescape()
    )
    page = environment.get_template("report.html").render(
        recipe=recipe,
        info=student.info,
        recipe_text=(run / "recipe.yaml").read_text(encoding="utf-8")
        if (run / "recipe.yaml").is_file()
        else "",
        seed=SEED,
        rows=_rows(subjects, prompts, drawn) if prompts else [],
        clouds=[] if prompts else _clouds(subjects, drawn),
        subjects=[{"name": s.name, "calls": s.calls} for s in subjects],
        roles=_roles(run),
        curves=_curves(run),
        health=[(finding, sparkline(finding)) for finding in _health(run, student.info.recipe)],
        bench=_bench(run),
        evaluation=_evaluation(run),
        tradeoff=_tradeoff(run),
        parity=_parity(run),
    )
    write_text(out, page)
    return out


def _student_of(run: Path) -> Path:
    # Of several students none is the run's; what loads them says so.
    whole = (run / "student.json").is_file() or (run / "students").is_dir()
    return run if whole else run / "student"


def _subjects(run: Path, recipe: Judged) -> tuple[list[Subject], list[str]]:
    noise = runtime_noise()
    teacher = load_teacher(recipe.teacher.family, recipe.teacher.path, recipe.teacher.config)
    section = recipe.teacher
    subjects = [
        teacher_subject(
            "teacher",
            teacher,
            noise,
            guidance=section.guidance,
            steps=section.steps,
            solver=section.solver,
        ),
        student_subject("student", load_student(_student_of(run)), noise),
    ]
    for manifest in sorted(run.glob("bundles/*/manifest.json")):
        subjects.append(open_subject(manifest.parent)[0])
    return subjects, _spread(preview_prompts(teacher))


def _spread(prompts: list[str]) -> list[str]:
    """At most `PICTURES` of them, evenly spaced."""
    count = min(PICTURES, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rows(
    subjects: list[Subject], prompts: list[str], drawn: list[NDArray[Any]]
) -> list[dict[str, Any]]:
    """A row a prompt: its picture by each subject."""
    return [
        {
            "prompt": prompt,
            "pictures": [_data_uri(Image.fromarray(images[i])) for images in drawn],
        }
        for i, prompt in enumerate(prompts)
    ]


def _clouds(subjects: list[Subject], drawn: list[NDArray[Any]]) -> list[dict[str, str]]:
    clouds = [points.astype(np.float32) for points in drawn]
    extent = 1.05 * max(float(np.abs(points).max()) for points in clouds)
    return [
        {"name": s.name, "picture": _figure_uri(scatter(points, clouds[0], extent))}
        for s, points in zip(subjects, clouds, strict=True)
    ]


def _curves(run: Path) -> str | None:
    """Training figures over steps, a panel each."""
    lines = read_metrics(run)
    if len(lines) < 2:
        return None
    names = sorted({k for line in lines for k in line if k.count("/") == 1})
    names = [n for n in names if not n.endswith("/grad_norm")]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.2 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, name in zip(panels, names, strict=False):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return _figure_uri(figure)


def _health(run: Path, recipe: Mapping[str, Any]) -> list[Finding]:
    return findings(read_metrics(run), recipe.get("student", {}).get("sampler", "renoise"))


def _roles(run: Path) -> str | None:
    """The last picture of what each role made of one noised sample."""
    drawn = sorted((run / "samples").glob("roles-*.png"))
    return _data_uri(Image.open(drawn[-1])) if drawn else None


def _bench(run: Path) -> dict[str, Any] | None:
    file, chart = run / "bench.json", run / "bench.png"
    if not file.is_file():
        return None
    results = read_json(file)
    picture = None
    if chart.is_file():
        picture = _data_uri(Image.open(chart))
    subjects = {k: v for k, v in results.items() if isinstance(v, dict) and "p50_s" in v}
    return {
        "subjects": subjects,
        "speedups": results["speedup_over_teacher"],
        "machine": results.get("machine", {}),
        "chart": picture,
    }


def _tradeoff(run: Path) -> str | None:
    """FD against p50 of every subject that has both, where bundles are among them."""
    if not ((run / "bench.json").is_file() and (run / "eval.json").is_file()):
        return None
    times, figures = read_json(run / "bench.json"), read_json(run / "eval.json")
    points = {
        name: (1000 * times[name]["p50_s"], figures[name]["fd"])
        for name in times
        if isinstance(times[name], dict)
        and "p50_s" in times[name]
        and "fd" in (figures.get(name) or {})
    }
    if not any(name.startswith("bundle:") for name in points):
        return None
    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    axes = figure.subplots()
    # Subjects often lie close together, where names at the points would cover each other.
    for name, (milliseconds, fd) in points.items():
        label = f"{name}: {milliseconds:,.{milliseconds < 100:d}f} ms, FD {fd:.3g}"
        axes.plot(milliseconds, fd, "o" if ":" in name else "s", label=label)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.15 * max(fd for _, fd in points.values()))
    axes.margins(x=0.1)
    axes.set_xlabel("milliseconds a picture (p50, log scale)")
    axes.set_ylabel("FD")
    axes.spines[["top", "right"]].set_visible(False)
    return _figure_uri(figure)


def _evaluation(run: Path) -> list[dict[str, Any]] | None:
    """Tables: a title, columns, and a row a subject."""
    file = run / "eval.json"
    if not file.is_file():
        return None
    return [
        {"title": title, "columns": columns_of(rows), "rows": rows}
        for title, rows in sections(read_json(file))
    ]


def _parity(run: Path) -> list[dict[str, Any]]:
    manifests = [
        (file.parent.name, read_json(file)) for file in run.glob("bundles/*/manifest.json")
    ]
    return [{"name": name, **manifest["parity"]} for name, manifest in sorted(manifests)]

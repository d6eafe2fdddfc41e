"""A student dir -> a bundle dir, whole and proven, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgedistill.files import atomic_folder
from edgedistill.student import Student, load_student
from edgedistill_export.parity import PROMPTS, ParityError, compare, shortfall
from edgedistill_export.targets import Target, find_target
from edgedistill_export.trace import ports
from edgedistill_runtime import manifest as schema
from edgedistill_runtime.pipeline import Pipeline
from edgedistill_runtime.steps import Row, StepTable

__all__ = ["export_student"]

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, what) when `what` begins, and at the end with done == total."""

_UNPROVEN = schema.Parity(
    samples=0,
    floor_db=0.0,
    final_floor_db=0.0,
    passed=False,
    graphs={},
    final=schema.Figures(mean=0.0, worst=0.0),
)


def export_student(
    student_dir: str | Path,
    target: str = "ort",
    precision: str = "fp32",
    out: str | Path | None = None,
    *,
    strict: bool = True,
    prompts: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Compile a student and compare the result with it.

    Args:
        student_dir: A folder with student.json.
        target: A name in `targets.TARGETS`, or one that is installed.
        precision: One of the target's.
        out: The bundle dir; an older bundle there is replaced. By default bundles/TARGET-PRECISION
            beside the student.
        strict: Fail under the parity floor; else write the bundle with `passed` false.
        prompts: What to compare on; by default the recipe's first 8, or 8 built in.
        progress: Called as each part begins.

    Returns:
        The bundle dir.

    Raises:
        ValueError: For an unknown target or precision, a missing SDK, a folder that is no student,
            or an `out` that holds something else.
        ParityError: If the bundle is not equal to its student; nothing is left behind.
    """
    goal = find_target(target)
    goal.check(precision)
    student = load_student(student_dir)
    place = Path(out) if out else student.path.parent / "bundles" / f"{target}-{precision}"
    if place.exists() and not (place / schema.FILE_NAME).is_file() and any(place.iterdir()):
        raise ValueError(f"{place}: exists and is no bundle; choose another place")
    graphs = student.teacher.graphs()
    report = _Report(progress, total=len(graphs) + 1)
    with atomic_folder(place) as work:
        compiled = {}
        for name, graph in graphs.items():
            report(name)
            files = goal.builder().build(graph, name, precision, work)
            inputs, outputs = ports(graph)
            compiled[name] = schema.Graph(
                file=files[0].relative_to(work).as_posix(),
                sha256=_hashes(files, work),
                precision=precision,
                inputs=inputs,
                outputs=outputs,
            )
        report("parity")
        manifest = _manifest(student, goal, precision, compiled, _tokenizer(student, work))
        _prove(student, manifest, work, _prompts(student, prompts), strict=strict)
    report("done")
    return place


class _Report:
    """Counts the parts for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, what: str) -> None:
        if self.progress:
            self.progress(self.done, self.total, what)
        self.done += 1


def _prove(
    student: Student,
    manifest: schema.Manifest,
    work: Path,
    prompts: Sequence[str],
    *,
    strict: bool,
) -> None:
    """Compare what lies in `work` with the student and complete its manifest."""
    manifest.write(work)
    parity = compare(student, Pipeline.load(work), prompts, manifest.precision)
    if strict and not parity.passed:
        raise ParityError(shortfall(parity))
    replace(manifest, parity=parity).write(work)


def _manifest(
    student: Student,
    target: Target,
    precision: str,
    graphs: dict[str, schema.Graph],
    tokenizer: schema.TokenizerFile | None,
) -> schema.Manifest:
    info = student.info
    image = None
    if "decoder" in graphs:
        height, width = graphs["decoder"].outputs[0].shape[2:]
        image = schema.Image(height=int(height), width=int(width))
    return schema.Manifest(
        schema_version=schema.SCHEMA_VERSION,
        target=target.name,
        backend=target.backend,
        precision=precision,
        steps=StepTable(
            init_scale=student.table.init_scale,
            rows=tuple(Row(**row) for row in student.table.to_json()["rows"]),
        ),
        latent=schema.Latent(**_latent(info.latent)),
        image=image,
        tokenizer=tokenizer,
        graphs=graphs,
        parity=_UNPROVEN,
        student=schema.Source(
            sha256=student.sha256,
            method=info.method,
            family=info.family,
            teacher=str(info.teacher.get("name", "")),
            licences=tuple(info.teacher.get("licences") or ()),
        ),
        versions={name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
    )


def _latent(latent: dict[str, Any]) -> dict[str, Any]:
    return {
        "shape": tuple(latent["shape"]),
        "scaling_factor": float(latent.get("scaling_factor") or 1.0),
        "shift_factor": float(latent.get("shift_factor") or 0.0),
    }


def _tokenizer(student: Student, work: Path) -> schema.TokenizerFile | None:
    """Write tokenizer.json from whatever form the student has it in."""
    if not (student.path / "tokenizer").is_dir():
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student.path / "tokenizer")
    path = work / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(path))
    return schema.TokenizerFile(
        file=path.name,
        sha256=_hashes([path], work),
        length=tokenizer.model_max_length,
        pad_id=tokenizer.pad_token_id,
    )


def _prompts(student: Student, prompts: Sequence[str] | None) -> Sequence[str]:
    if prompts is not None:
        return prompts
    named = (student.info.recipe.get("data") or {}).get("prompts")
    if named and Path(named).is_file():
        lines = Path(named).read_text("utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()][: len(PROMPTS)] or PROMPTS
    return PROMPTS


def _hashes(files: Sequence[Path], work: Path) -> dict[str, str]:
    return {file.relative_to(work).as_posix(): schema.sha256(file) for file in files}

"""Subjects of a benchmark: teacher, student and bundles, found in folders."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgedistill import assets
from edgedistill.common.files import read_json
from edgedistill.students.folder import StudentInfo, student_sha256
from edgedistill.students.group import group_of
from edgedistill_runtime.manifest import FILE_NAME, Manifest

__all__ = ["STUDENT", "TEACHER", "BenchSubject", "find_subjects", "home_of"]

TEACHER, STUDENT = "teacher", "student"
"""Names of subjects that are no bundles."""


@dataclass(frozen=True, kw_only=True)
class BenchSubject:
    """One subject of a benchmark, measured by one process.

    Attributes:
        name: Key in the results: teacher, student or bundle:NAME.
        path: A bundle dir, or a pipeline folder or Hub id.
        bundle: Whether the runtime runs it; else torch does.
        steps: Scheduler steps of a pipeline; a student's own if None.
        guidance: Guidance scale of a pipeline.
        student: `Student.sha256` of the student, or of the one a bundle was made from; "" of a
            teacher, and where it cannot be told.
    """

    name: str
    path: str
    bundle: bool = False
    steps: int | None = None
    guidance: float = 1.0
    student: str = ""

    def command(
        self, runs: int, threads: int, file: Path, options: Sequence[str] = ()
    ) -> list[str]:
        """Return the command line of the subject's process; `options` are for a bundle only."""
        module = "edgedistill_runtime.bench" if self.bundle else "edgedistill.draw.bench"
        command = [sys.executable, "-m", module, self.path, "--runs", str(runs)]
        command += ["--threads", str(threads), "--json", str(file)]
        if not self.bundle:
            command += ["--guidance", str(self.guidance)]
            command += ["--steps", str(self.steps)] if self.steps else []
        return [*command, *options]


def find_subjects(paths: Sequence[str | Path]) -> list[BenchSubject]:
    """Find subjects of bundles, students and run dirs; the first student's teacher is added.

    A run dir stands for its student and all its bundles. A folder that is given twice is one
    subject, and different folders of one name are told apart by a number.

    Raises:
        ValueError: For a folder that is neither, or a broken manifest.json or student.json.
    """
    found: dict[str, BenchSubject] = {}
    known = set[Path]()
    for subject in (subject for path in map(Path, paths) for subject in _subjects(path)):
        if subject.name != TEACHER:
            folder = Path(subject.path).resolve()
            if folder in known:
                continue
            known.add(folder)
        name, count = subject.name, 1
        while name in found and subject.name != TEACHER:
            count += 1
            name = f"{subject.name}-{count}"
        found.setdefault(name, replace(subject, name=name))
    order = {TEACHER: 0, STUDENT: 1}
    return sorted(found.values(), key=lambda subject: order.get(subject.name, 2))


def home_of(paths: Sequence[str | Path]) -> Path | None:
    """Return the run dir of all paths (RUN, RUN/student, RUN/bundles/NAME), if they share one."""
    homes = set()
    for path in map(Path, paths):
        whole = path.absolute()
        parent = whole.parent.parent if whole.parent.name == "bundles" else whole.parent
        homes.add(whole if _is_run(whole) else parent)
    home = homes.pop()
    return home if not homes and _is_run(home) else None


def _is_run(path: Path) -> bool:
    return (path / "student" / "student.json").is_file()


def _subjects(path: Path) -> list[BenchSubject]:
    if (path / FILE_NAME).is_file():
        made_from = Manifest.read(path).student.sha256
        name = f"bundle:{path.resolve().name}"
        return [BenchSubject(name=name, path=str(path), bundle=True, student=made_from)]
    if _is_run(path):
        bundles = sorted(file.parent for file in path.glob(f"bundles/*/{FILE_NAME}"))
        return [s for each in (path / "student", *bundles) for s in _subjects(each)]
    group = group_of(path)
    if group:
        raise ValueError(f"{path}: several students; name one, as {group / '0'}")
    if not (path / "student.json").is_file():
        raise ValueError(f"{path}: neither a bundle ({FILE_NAME}) nor a student (student.json)")
    info = read_json(path / "student.json")
    student = BenchSubject(name=STUDENT, path=str(path), student=_hash(path, info))
    # A closed-form teacher is no pipeline, and its time is meaningless.
    if not (path / "model_index.json").is_file():
        return [student]
    teacher, recipe = info.get("teacher") or {}, info.get("recipe") or {}
    chosen = recipe.get("teacher") or {}
    where = str(teacher.get("path") or teacher.get("name") or "")
    shipped = assets.ROOT / where
    return [
        BenchSubject(
            name=TEACHER,
            path=str(shipped) if where and shipped.is_dir() else where,
            steps=int(chosen.get("steps") or 25),
            guidance=float(chosen.get("guidance") or teacher.get("guidance") or 1.0),
        ),
        student,
    ]


def _hash(folder: Path, info: Mapping[str, Any]) -> str:
    """Return the hash of a student; "" of a broken one, which its own process reports."""
    try:
        return student_sha256(folder, StudentInfo.model_validate(info))
    except (ValueError, OSError):
        return ""

"""The request of an export, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgedistill.common.files import check_writable, recover
from edgedistill.students.folder import Student, load_student
from edgedistill_export.settings import ExportSettings
from edgedistill_export.targets import TARGETS, Options, Target, UnsupportedError, find_target
from edgedistill_runtime import manifest as schema
from edgedistill_runtime.routes import ROUTES

__all__ = ["Request", "default_place", "prepare"]


def default_place(student: str | Path, target: str, precision: str, suffix: str = "") -> Path:
    """Return a bundle's default path: bundles/TARGET-PRECISION beside the student.

    For one of several students, it is the folder of its number in there.
    """
    folder, name = Path(student), f"{target}-{precision}{suffix}"
    if (folder.parent / ROUTES).is_file():
        return folder.parent.parent / "bundles" / name / folder.name
    return folder.parent / "bundles" / name


@dataclass(frozen=True, kw_only=True)
class Request:
    """An export that can be built.

    Attributes:
        student: The student, with the depth and decoder that were asked for.
        goal: The target.
        precision: One of its precisions.
        options: Options of the target.
        place: The bundle dir.
        made_from: Hash of everything that the bundle is made from.
    """

    student: Student
    goal: Target
    precision: str
    options: Options
    place: Path
    made_from: str

    def up_to_date(self, strict: bool) -> bool:
        """Whether the bundle at `place` is whole, and made from the same."""
        try:
            manifest = schema.Manifest.read(self.place)
            manifest.verify(self.place)
        except schema.BundleError:
            return False
        oldest = schema.schema_for(manifest.steps, manifest.choices)
        newest = manifest.schema_version == oldest
        same = newest and manifest.made_from == self.made_from
        return same and (manifest.parity.passed or not strict)


def prepare(
    student_dir: str | Path,
    target: str,
    precision: str | None,
    out: str | Path | None,
    settings: ExportSettings,
) -> Request:
    """Open the student of an export and check the request, before any work.

    Raises:
        ValueError: As in `export_student`.
    """
    goal = find_target(target)
    precision = precision or next(iter(goal.precisions))
    goal.check(precision)
    options = goal.options(settings.options)
    student = load_student(student_dir)
    if settings.depth:
        student.use_depth(settings.depth)
    _check_sizes(student, goal, settings)
    if student.table.reuses and not settings.fused:
        raise ValueError(
            f"{student.path}: some of its steps reuse deep blocks, which only one graph of all "
            "steps can; add --fused (fused=True in Python)"
        )
    if settings.decoder:
        student.teacher.use_decoder(str(settings.decoder))
    place = default_place(student.path, target, precision, settings.suffix)
    place = Path(out) if out else place
    recover(place)
    if place.is_file():
        raise ValueError(f"--out {place}: is a file; choose another place")
    if place.exists() and not (place / schema.FILE_NAME).is_file() and any(place.iterdir()):
        raise ValueError(f"{place}: exists and is no bundle; choose another place")
    check_writable(place.parent / schema.FILE_NAME, f"--out {place}")
    return Request(
        student=student,
        goal=goal,
        precision=precision,
        options=options,
        place=place,
        made_from=settings.sha256(student, goal, precision, options),
    )


def _check_sizes(student: Student, target: Target, settings: ExportSettings) -> None:
    """Raise an UnsupportedError for steps that grow, and a target that supports one size only."""
    if not student.table.grows:
        return
    if not target.grows:
        able = ", ".join(name for name, each in TARGETS.items() if each.grows)
        raise UnsupportedError(
            f"target {target.name!r}: its graphs take x of one height and width, and the steps of "
            f"{student.path} grow; choose from {able}"
        )
    if settings.fused:
        raise ValueError(f"--fused: the steps of {student.path} grow, and one graph's do not")

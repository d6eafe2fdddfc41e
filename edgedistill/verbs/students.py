"""Student folders and bundles as objects: draw, export."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from edgedistill import adoption
from edgedistill.common.pictures import grid
from edgedistill.common.progress import Progress
from edgedistill.draw.generate import draw_samples
from edgedistill.students.folder import StudentInfo, load_student_info
from edgedistill.students.group import group_of
from edgedistill.students.hub import working_copy
from edgedistill.verbs.html import figures_html
from edgedistill.verbs.places import settled, student_at
from edgedistill_export.auto.choosing import choose
from edgedistill_export.auto.kept import AUTO, check_alone, find_choice, key_of
from edgedistill_export.many import ExportRow, export_group, export_many, pairs
from edgedistill_export.settings import ExportSettings
from edgedistill_runtime.hub import local_folder
from edgedistill_runtime.manifest import Manifest

__all__ = [
    "Bundle",
    "StudentDir",
    "adopt",
    "export_all",
    "export_best",
    "load_bundle",
    "load_student",
]


class Drawing:
    """Base class of students and bundles: a folder that draws.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def samples(self, prompt: str | None = None, *, seed: int = 0, count: int = 1) -> NDArray[Any]:
        """Draw uint8 pictures (N, H, W, 3), or points (N, D); sample i depends on (seed, i)."""
        return draw_samples(str(self.path), prompt, seed=seed, count=count)

    def draw(self, prompt: str | None = None, *, seed: int = 0, count: int = 1) -> Image.Image:
        """Draw pictures as one image, a grid where there are several.

        Raises:
            ValueError: If the samples are points, not pictures.
        """
        found = self.samples(prompt, seed=seed, count=count)
        if found.ndim != 4:
            raise ValueError(f"{self.path}: its samples are points; take samples()")
        return grid(found)


class StudentDir(Drawing):
    """A student folder.

    Attributes:
        path: The folder with student.json; for several students the folder with students.json.
    """

    @cached_property
    def info(self) -> StudentInfo:
        """Contents of student.json, of the first student if there are several."""
        group = group_of(self.path)
        return load_student_info(group / "0" if group else self.path)

    @property
    def steps(self) -> int:
        """Number of network calls for a picture."""
        return len(self.info.step_table["rows"])

    def export(
        self,
        target: str = "ort",
        precision: str | None = None,
        out: str | Path | None = None,
        *,
        rebuild: bool = False,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Bundle:
        """Compile the student for a device and prove that the bundle is still the student.

        Args:
            target: ort, openvino, trt, coreml, executorch, web or one that a plug-in brings; or
                auto for the bundle that is the fastest here (see `export_best`).
            precision: One of the target's precisions; its first if None.
            out: The bundle's folder; by default beside the student.
            rebuild: Whether to build a bundle that is up to date again.
            progress: Called as progress(done, total, what) as each part begins.
            settings: Fields of `edgedistill_export.settings.ExportSettings`, such as `min_psnr`.

        Raises:
            ValueError: If the request is wrong, or the bundle differs from its student.
        """
        place = None if out is None else Path(out)
        chosen = ExportSettings(**settings)
        if target == AUTO:
            check_alone([target], [precision] if precision else [], place)
            return Bundle(
                export_best(self.path, settings=chosen, rebuild=rebuild, progress=progress)
            )
        wanted = pairs([target], [precision] if precision else [])
        (row,) = export_all(self.path, wanted, place, chosen, rebuild=rebuild, progress=progress)
        if row.place is None:
            raise ValueError(f"{row.name}: {row.error}")
        return Bundle(row.place)

    def __repr__(self) -> str:
        return f"StudentDir({str(self.path)!r}, {self.info.family}, {self.steps} steps)"

    def _repr_html_(self) -> str:
        info = self.info
        about = {"family": info.family, "method": info.method, "steps": self.steps}
        return figures_html(f"student {self.path}", {**about, **(info.evaluation or {})})


class Bundle(Drawing):
    """A bundle: the graphs of a student for one target, and their manifest.

    Attributes:
        path: The folder, with manifest.json.
    """

    @cached_property
    def manifest(self) -> Manifest:
        """The bundle's manifest, read and checked."""
        return Manifest.read(self.path)

    @property
    def size_mb(self) -> float:
        """Size of all files in MiB."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file()) / 2**20

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, {self.size_mb:.1f} MiB)"

    def _repr_html_(self) -> str:
        return f"<p>bundle <code>{escape(str(self.path))}</code>, {self.size_mb:.1f} MiB</p>"


def load_student(path: str | Path) -> StudentDir:
    """Open a student folder, the student of a run dir, or a folder of several students.

    Args:
        path: The folder, or OWNER/NAME[@REVISION] on the Hugging Face Hub, which is copied to
            runs/NAME.

    Raises:
        ValueError: If there is no student; names the file and the key.
    """
    folder = student_at(path)
    group = group_of(folder)
    inner = folder / "student"
    student = StudentDir(group or (inner if (inner / "student.json").is_file() else folder))
    _ = student.info  # for what it refuses
    return student


def load_bundle(path: str | Path) -> Bundle:
    """Open a bundle.

    Args:
        path: The folder, or OWNER/NAME[@REVISION] on the Hugging Face Hub.

    Raises:
        BundleError: If there is no bundle, or its manifest is wrong; names the file and the key.
        HubError: If the Hub has no such bundle.
    """
    bundle = Bundle(local_folder(settled(path)))
    _ = bundle.manifest  # for what it refuses
    return bundle


def adopt(
    checkpoint: str | Path,
    kind: str,
    *,
    base: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    out: str | Path | None = None,
) -> StudentDir:
    """Make a student dir of a few-step student that was made elsewhere.

    Args:
        checkpoint: A pipeline folder, a U-Net's or transformer's .safetensors, or a LoRA; or the
            Hub id of one.
        kind: Kind of the student: lcm, turbo, lightning, dmd2, ...; or dpm++2m, unipc, deis or
            ddim for a teacher as it is, with that solver's steps. A wrong one lists all.
        base: Pipeline folder or Hub id that weights or a LoRA are for.
        steps: Network calls; as published if None, 8 for a teacher.
        guidance: Guidance scale that an LCM is fixed at.
        out: The student dir; runs/CHECKPOINT/student if None.

    Raises:
        ValueError: If the checkpoint is not of this kind, or does not fit its base; names the key.
    """
    place = None if out is None else Path(out)
    return StudentDir(
        adoption.adopt(str(checkpoint), kind, base=base, steps=steps, guidance=guidance, out=place)
    )


def export_all(
    student: Path,
    wanted: Sequence[tuple[str, str]],
    out: Path | None,
    settings: ExportSettings,
    *,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> list[ExportRow]:
    """Export a student, or several, for each (target, precision); failures do not stop others.

    Raises:
        ValueError: If the request is wrong for every target.
    """
    student = working_copy(student)
    group = group_of(student)
    build = export_group if group else export_many
    return build(group or student, wanted, out, settings, rebuild=rebuild, progress=progress)


def export_best(
    student: Path,
    purpose: str = "latency",
    *,
    settings: ExportSettings,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Build the bundles that run on this device, measure them and return the best.

    Args:
        student: The student dir.
        purpose: latency, throughput, memory, size or start.
        settings: Settings of all exports.
        rebuild: Whether to build and measure again what is known.
        progress: Called as each part begins.

    Raises:
        ValueError: If the purpose is unknown, or no bundle can be built and proven here.
    """
    folder = working_copy(student)
    if group_of(folder):
        raise ValueError(f"{student}: several students; name one, as {folder / '0'}")
    key = key_of(vars(settings), vars(ExportSettings()))
    known = None if rebuild else find_choice(folder, purpose, key)
    if known:
        return known
    return choose(folder, purpose, settings, key, rebuild=rebuild, progress=progress).place

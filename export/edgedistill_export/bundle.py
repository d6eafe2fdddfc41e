"""Export a student dir to a bundle dir, whole and proven, or not at all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias

from edgedistill.common.decibels import decibels
from edgedistill.common.files import atomic_folder
from edgedistill.common.progress import Progress
from edgedistill.students.folder import Student
from edgedistill.teachers.base import ExportGraph
from edgedistill_export.contents import hashes_of, new_manifest
from edgedistill_export.fuse import fuse, inside
from edgedistill_export.memory import WeightsOnDisk, watch_peak, weights_mb
from edgedistill_export.parity import (
    TIERS,
    ParityError,
    compare,
    find_features,
    save_worst,
    shortfall,
)
from edgedistill_export.prompts import calibration_prompts, parity_prompts
from edgedistill_export.quantize.budget import Budget
from edgedistill_export.request import default_place, prepare
from edgedistill_export.settings import ExportSettings
from edgedistill_export.targets import (
    PROOFS,
    Built,
    Call,
    Job,
    Options,
    Target,
)
from edgedistill_export.terms import write_terms
from edgedistill_export.trace import ports
from edgedistill_export.walk import calls_of, networks
from edgedistill_runtime import manifest as schema
from edgedistill_runtime.backends import open_graph
from edgedistill_runtime.pipeline import Pipeline
from edgedistill_runtime.tokenizer import open_tokenizer

__all__ = [
    "ExportSettings",
    "Peaks",
    "check_gate",
    "default_place",
    "export_student",
]

log = logging.getLogger(__name__)

Peaks: TypeAlias = dict[str, tuple[float | None, float]]
"""Memory by network: (peak resident memory, its weights in float32), MiB."""

_CALIBRATION_SEED = 1


def export_student(
    student_dir: str | Path,
    target: str = "ort",
    precision: str | None = None,
    out: str | Path | None = None,
    *,
    settings: ExportSettings | None = None,
    rebuild: bool = False,
    progress: Progress | None = None,
    peaks: Peaks | None = None,
) -> Path:
    """Compile a student and compare the result with it.

    A bundle at `out` that was made from the same student with the same settings is not changed.

    Args:
        student_dir: A folder with student.json.
        target: Name of a target in `targets.TARGETS`, or of an installed one.
        precision: One of the target's precisions, by default its first.
        out: The bundle dir; an older bundle there is replaced. By default `default_place`.
        settings: Further settings.
        rebuild: Whether to build a bundle that is up to date again.
        progress: Called as each part begins.
        peaks: Filled with the memory used to compile each network.

    Returns:
        The bundle dir.

    Raises:
        UnsupportedError: If the target's SDK does not support the student; before any work.
        ValueError: If the target, precision or option is unknown, an SDK is missing, the folder is
            no student, or `out` holds something else.
        ParityError: If the bundle differs from its student; nothing is left behind.
    """
    settings = settings or ExportSettings()
    request = prepare(student_dir, target, precision, out, settings)
    student, goal, precision = request.student, request.goal, request.precision
    options, place = request.options, request.place
    if not rebuild and request.up_to_date(settings.strict):
        if progress:
            progress(1, 1, "up to date")
        return place
    if out and not rebuild:
        _check_owner(place, student)
    floor = TIERS[goal.precisions[precision]].final_db if settings.strict else 0.0
    least = settings.min_psnr and max(settings.min_psnr, floor)
    budget = Budget(student, precision, least, settings.max_size, progress)
    with atomic_folder(place) as work:
        for keep in budget.proposals(settings.keep):
            _empty(work)
            # The gate is applied once the budget has no further proposal.
            chosen = replace(settings, keep=keep, strict=False)
            export = _Export(student, goal, precision, options, chosen, work)
            manifest = export.build(progress)
            if peaks is not None:
                peaks.update(export.peaks)
            budget.reached = manifest.parity.final.worst
        check_gate(manifest, settings)
        write_terms(student.path, student.info.teacher, work)
        replace(manifest, made_from=request.made_from).write(work)
    return place


def _check_owner(place: Path, student: Student) -> None:
    """Raise a ValueError if a bundle of another student is at `place`."""
    if not (place / schema.FILE_NAME).is_file():
        return
    try:
        found = schema.Manifest.read(place).student
    except schema.BundleError:
        return  # a broken bundle may be replaced
    if found.sha256 != student.sha256:
        raise ValueError(
            f"--out {place}: holds a bundle of another student ({found.method} of "
            f"{found.teacher}); choose another place, or --rebuild to replace it"
        )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_gate(manifest: schema.Manifest, settings: ExportSettings) -> None:
    """Raise a ParityError for figures below a floor, or below the requested minimum."""
    if not settings.strict:
        return
    parity = manifest.parity
    if not parity.passed:
        raise ParityError(shortfall(parity), parity)
    reached, wanted = parity.final.worst, settings.min_psnr or 0.0
    if reached < wanted:
        raise ParityError(
            f"worst sample {decibels(reached, ' dB')} with the costliest layers kept; "
            f"{wanted:g} asked",
            parity,
        )


class _Export:
    """One bundle while it is being made."""

    def __init__(
        self,
        student: Student,
        target: Target,
        precision: str,
        options: Options,
        settings: ExportSettings,
        work: Path,
    ) -> None:
        self.student, self.target, self.precision = student, target, precision
        self.options, self.settings, self.work = options, settings, work
        self.peaks: Peaks = {}

    def build(self, progress: Progress | None) -> schema.Manifest:
        """Compile every network, one after the other, and prove the whole bundle."""
        graphs = networks(self.student)
        keep = self.settings.keep
        if self.settings.fused:
            graphs = {schema.FUSED: fuse(self.student)}
            keep = {schema.FUSED: inside(keep)}
        report = _Report(progress, total=len(graphs) + 1)
        compiled, proofs = {}, {}
        stored = self._store(graphs)
        for name, graph in graphs.items():
            report(name)
            job = Job(
                name=name,
                graph=graph,
                precision=self.precision,
                folder=self.work,
                options=self.options,
                calls=partial(self._recorded, name),
                keep=keep.get(name, frozenset()),
                traced=stored[name].forget,
            )
            log.debug(f"{name} for {self.target.name} {self.precision} in {self.work}")
            with watch_peak() as peak:
                built = self.target.builder().build(job)
            self.peaks[name] = peak.mb, weights_mb(graph.module)
            stored[name].forget()
            compiled[name] = self._entry(job, built)
            if built.proof:
                proofs[name] = built.proof.relative_to(self.work).as_posix()
        report("parity")
        manifest = new_manifest(
            self.student, self.target, self.precision, compiled, self._tokenizers()
        )
        parity = self._prove(manifest, proofs)
        shutil.rmtree(self.work / PROOFS, ignore_errors=True)
        report("done")
        return replace(manifest, parity=parity)

    def _store(self, graphs: Mapping[str, ExportGraph]) -> dict[str, WeightsOnDisk]:
        """Move all weights out of memory, so that one network's export does not hold another's."""
        folder = self.work / ".weights"
        folder.mkdir()
        stored = {
            name: WeightsOnDisk(graph.module, folder / name) for name, graph in graphs.items()
        }
        shutil.rmtree(folder)
        return stored

    def _recorded(self, name: str) -> list[Call]:
        return self._calls[name]

    @cached_property
    def _calls(self) -> dict[str, list[Call]]:
        settings = self.settings
        lines = settings.calibration
        if lines is None:
            lines = calibration_prompts(self.student, settings.calibration_count)
        return calls_of(self.student, lines, _CALIBRATION_SEED, fused=settings.fused)

    def _entry(self, job: Job, built: Built) -> schema.Graph:
        inputs, outputs = ports(job.graph, built.batch)
        return schema.Graph(
            file=built.files[0].relative_to(self.work).as_posix(),
            sha256=hashes_of(built.files, self.work),
            precision=job.precision,
            inputs=inputs,
            outputs=outputs,
            notes={**built.notes, **_kept(job)},
        )

    def _prove(self, manifest: schema.Manifest, proofs: Mapping[str, str]) -> schema.Parity:
        """Compare the bundle in `work` with the student."""
        tier, settings = self.target.precisions[self.precision], self.settings
        pipe = _proof(manifest, self.work, self.target.proof or self.target.backend, proofs)
        prompts = settings.prompts
        if prompts is None:
            prompts = parity_prompts(self.student, TIERS[tier].samples)
        comparison = compare(self.student, pipe, prompts, tier, find_features(self.student))
        save_worst(comparison, self.work / "worst.png")
        return replace(comparison.parity, backend=self.target.proof or self.target.backend)

    def _tokenizers(self) -> list[schema.TokenizerFile]:
        """Write a tokenizer.json for each of the student's tokenizers, whatever their form."""
        teacher, files = self.student.teacher, []
        for component, name in teacher.tokenizers.items():
            tokenizer = teacher.tokenizer(component)
            path = self.work / f"{component}.json"
            tokenizer.backend_tokenizer.save(str(path))
            entry = schema.TokenizerFile(
                file=path.name,
                sha256=hashes_of([path], self.work),
                length=teacher.length(component),
                pad_id=tokenizer.pad_token_id,
                input=name,
                mask=teacher.masks.get(component, ""),
            )
            files.append(entry)
        return files


def _proof(
    manifest: schema.Manifest, work: Path, backend: str, proofs: Mapping[str, str]
) -> Pipeline:
    """Open the bundle as `backend` runs it."""
    graphs = {
        name: open_graph(
            backend, work, replace(graph, file=proofs.get(name, graph.file), sha256={})
        )
        for name, graph in manifest.graphs.items()
    }
    # Values that are not finite are reported by parity, with the graph they come from.
    return Pipeline(manifest, graphs, open_tokenizer(manifest, work), finite=False)


def _kept(job: Job) -> dict[str, str]:
    return {"float_layers": " ".join(sorted(job.keep))} if job.keep else {}


class _Report:
    """Counter of the parts for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, what: str) -> None:
        if self.progress:
            self.progress(self.done, self.total, what)
        self.done += 1

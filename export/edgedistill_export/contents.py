"""Contents of a bundle's manifest about its student, before anything is proven."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.students.folder import Student
from edgedistill_export.targets import Target
from edgedistill_runtime import manifest as schema
from edgedistill_runtime.steps import Row, StepTable

__all__ = ["hashes_of", "new_manifest"]

_UNPROVEN = schema.Parity(
    tier="",
    backend="",
    samples=0,
    floor_db=0.0,
    final_floor_db=0.0,
    text_image_floor=0.0,
    passed=False,
    graphs={},
    final=schema.Figures(mean=0.0, worst=0.0),
    worst_prompt="",
    perceptual=None,
    text_image=None,
)


def new_manifest(
    student: Student,
    target: Target,
    precision: str,
    graphs: dict[str, schema.Graph],
    tokenizers: list[schema.TokenizerFile],
) -> schema.Manifest:
    """Make the manifest of a bundle that is built and not yet proven."""
    info = student.info
    image = None
    pictures = [
        port for graph in graphs.values() for port in graph.outputs if port.name == "image"
    ]
    if pictures:
        height, width = pictures[0].shape[2:]
        image = schema.Image(height=int(height), width=int(width))
    steps = _steps(student.table)
    return schema.Manifest(
        schema_version=schema.schema_for(steps),
        target=target.name,
        backend=target.backend,
        precision=precision,
        steps=steps,
        latent=schema.Latent(**_latent(info.latent)),
        image=image,
        tokenizer=tokenizers[0] if tokenizers else None,
        more_tokenizers=tuple(tokenizers[1:]),
        graphs=graphs,
        parity=_UNPROVEN,
        student=schema.Source(
            sha256=student.sha256,
            method=info.method,
            family=info.family,
            teacher=str(info.teacher.get("name", "")),
            licences=tuple(info.teacher.get("licences") or ()),
        ),
        versions=_versions(("torch", "numpy", *target.requires)),
        made_from="",
    )


def _steps(table: TorchStepTable) -> StepTable:
    # A row that reuses is one only inside a fused graph, which the runtime calls as a whole.
    rows = (
        {key: value for key, value in vars(row).items() if key != "reuse"} for row in table.rows
    )
    return StepTable(init_scale=table.init_scale, rows=tuple(Row(**row) for row in rows))


def _versions(modules: Sequence[str]) -> dict[str, str]:
    found = {}
    for module in modules:
        try:
            found[module] = version(module)
        except PackageNotFoundError:
            continue
    return found


def _latent(latent: dict[str, Any]) -> dict[str, Any]:
    return {
        "shape": tuple(latent["shape"]),
        "scaling_factor": float(latent.get("scaling_factor") or 1.0),
        "shift_factor": float(latent.get("shift_factor") or 0.0),
    }


def hashes_of(files: Sequence[Path], work: Path) -> dict[str, str]:
    """Hash files, and all files in folders, by their names in the bundle at `work`."""
    every = [
        file
        for path in files
        for file in (
            [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        )
    ]
    return {file.relative_to(work).as_posix(): schema.sha256(file) for file in every}

"""Plans of exports, which build nothing: bundles, their sizes and their proofs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from edgedistill.students.group import group_of
from edgedistill_export.parity import TIERS
from edgedistill_export.request import Request, prepare
from edgedistill_export.settings import ExportSettings
from edgedistill_export.walk import networks
from edgedistill_runtime.routes import Routes

__all__ = ["PlannedExport", "as_json", "bits_of", "lines", "plan_exports", "table"]

SPARSE_BITS = 4
"""Bits of a weight in precision `joint`, a palette of 16 values."""


@dataclass(frozen=True, kw_only=True)
class PlannedExport:
    """One export that was asked for.

    Attributes:
        name: TARGET-PRECISION, with a suffix for other settings.
        place: The bundle dir.
        state: "new", "up to date", or "replaces the bundle there".
        networks: Number of parameters of each network.
        size_mb: Estimated size of the weights, MiB.
        proof: Backend that runs the bundle for the proof.
        samples: Number of samples that are compared.
        graph_db: Least PSNR of each graph; 0 where only the picture counts.
        final_db: Least PSNR of each picture.
        text_image: Least ratio of text-image scores, where pictures have captions.
    """

    name: str
    place: Path
    state: str
    networks: dict[str, int]
    size_mb: float
    proof: str
    samples: int
    graph_db: float
    final_db: float
    text_image: float


def plan_exports(
    student: Path, wanted: Sequence[tuple[str, str]], out: Path | None, settings: ExportSettings
) -> list[PlannedExport]:
    """Plan the export of a student, or several, for each (target, precision).

    Raises:
        ValueError: As the export itself would, for a request that is wrong.
    """
    group = group_of(student)
    places: list[tuple[Path, str]] = [(student, "")]
    if group:
        places = [(group / str(i), f"/{i}") for i in range(len(Routes.read(group).parts))]
    return [
        _planned(folder, pair, out / part[1:] if out and part else out, settings, part)
        for pair in wanted
        for folder, part in places
    ]


def _planned(
    student: Path, pair: tuple[str, str], out: Path | None, settings: ExportSettings, part: str
) -> PlannedExport:
    request = prepare(student, *pair, out, settings)
    nets = {name: graph.module for name, graph in networks(request.student).items()}
    tier = TIERS[request.goal.precisions[request.precision]]
    return PlannedExport(
        name=f"{request.goal.name}-{request.precision}{settings.suffix}{part}",
        place=request.place,
        state=_state(request, settings),
        networks={name: _count(net) for name, net in nets.items()},
        size_mb=sum(_size_mb(net, bits_of(request.precision)) for net in nets.values()),
        proof=request.goal.proof or request.goal.backend,
        samples=len(settings.prompts) if settings.prompts is not None else tier.samples,
        graph_db=tier.graph_db,
        final_db=max(tier.final_db, settings.min_psnr or 0.0),
        text_image=tier.text_image,
    )


def _state(request: Request, settings: ExportSettings) -> str:
    if request.up_to_date(settings.strict):
        return "up to date"
    return "replaces the bundle there" if request.place.exists() else "new"


def bits_of(precision: str) -> int:
    """Return the bits of a stored weight in a precision such as fp16, int8-weights or pal6."""
    found = re.search(r"\d+", precision)
    return int(found[0]) if found else SPARSE_BITS


def _parameters(net: nn.Module) -> list[nn.Parameter]:
    return list({id(p): p for p in net.parameters()}.values())


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in _parameters(net))


def _size_mb(net: nn.Module, bits: int) -> float:
    """Estimate the size of weights; below 16 bits, vectors such as biases stay at 32."""
    stored = (p.numel() * (bits if bits >= 16 or p.ndim > 1 else 32) for p in _parameters(net))
    return sum(stored) / 8 / 2**20


def table(rows: Sequence[PlannedExport]) -> Table:
    """Make the table of planned exports for a terminal."""
    made = Table("bundle", "state", box=None)
    for heading in ("MiB, about", "samples", "graphs dB", "picture dB"):
        made.add_column(heading, justify="right")
    made.add_column("run for the proof by")
    for row in rows:
        graphs = f"{row.graph_db:g}" if row.graph_db else "-"
        figures = (f"{row.size_mb:.1f}", str(row.samples), graphs, f"{row.final_db:g}")
        made.add_row(row.name, row.state, *figures, row.proof)
    return made


def lines(rows: Sequence[PlannedExport]) -> list[str]:
    """Return lines on the networks and places of planned exports."""
    networks = ", ".join(f"{name} {count:,}" for name, count in rows[0].networks.items())
    return [f"parameters: {networks}", *(f"{row.name}: {row.place}" for row in rows)]


def as_json(row: PlannedExport) -> dict[str, Any]:
    """Return a row as `edgedistill export --dry-run --json` prints it."""
    return {**asdict(row), "place": str(row.place)}

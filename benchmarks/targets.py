"""Every target and precision that builds here: size, seconds, parity, and latency where it runs.

`python benchmarks/targets.py [STUDENT] [--qat STUDENT] [--only TARGET ...] [--out FOLDER]` writes
FOLDER/targets.json and FOLDER/targets.md. With --qat, the int8 bundles of the student and of its
quantization-aware sequel are both compared with the float student.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.common.decibels import decibels
from edgedistill.common.files import write_json, write_text
from edgedistill.draw.subjects import student_subject
from edgedistill.students.folder import load_student
from edgedistill_export.bundle import ExportSettings
from edgedistill_export.many import ExportRow, export_many, pairs
from edgedistill_export.parity import find_features, psnr
from edgedistill_export.prompts import parity_prompts
from edgedistill_runtime import Pipeline
from edgedistill_runtime.manifest import Manifest
from edgedistill_runtime.noise import noise

ROOT = Path(__file__).parents[1]
NOT_HERE = {"trt": "needs its GPU", "coreml": "needs a Mac"}
"""Targets that build here and run elsewhere."""

HEADINGS = (
    "bundle", "MiB", "build and proof, s", "proven by", "worst graph dB", "picture dB", "worst",
    "LPIPS-like", "text-image", "p50 ms", "denoiser", "decoder",
)  # fmt: skip


def latency(place: Path, runs: int) -> dict[str, Any] | str:
    """Figures of a bundle in a process of its own, or why there are none."""
    target = Manifest.read(place).target
    if target in NOT_HERE:
        return NOT_HERE[target]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "edgedistill_runtime.bench", str(place)]
        if target == "web":
            command = ["node", str(ROOT / "runtime" / "web" / "bench.mjs"), str(place)]
        command += ["--runs", str(runs), "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["failed"])[-1]
        return dict(json.loads(file.read_text()))


def line(row: ExportRow, timing: dict[str, Any] | str) -> list[str]:
    """Cells of one row."""
    cells = [row.name, f"{row.size_mb:.1f}" if row.place else "-", f"{row.seconds:.0f}"]
    if row.parity is None:
        return [*cells, row.error]
    figures = row.parity
    worst = min(graph.worst for graph in figures.graphs.values())
    cells += [figures.backend, *map(decibels, (worst, figures.final.mean, figures.final.worst))]
    for value in (figures.perceptual, figures.text_image):
        cells.append("-" if value is None else f"{value:.4f}")
    if row.error:
        return [*cells, "refused: " + row.error.removeprefix("not equal to its student: ")]
    if isinstance(timing, str):
        return [*cells, timing]
    stages = timing["stages"]
    times = [timing["p50_s"], stages["denoiser"]["p50_s"], stages["decoder"]["p50_s"]]
    return [*cells, *(f"{1000 * seconds:.1f}" for seconds in times)]


def compare_qat(student: Path, qat: Path, folder: Path) -> list[list[str]]:
    """The int8 bundles of a student and of its sequel against the float student, 64 prompts."""
    truth = load_student(student)
    prompts, features = parity_prompts(truth, 64), find_features(truth)
    reference = student_subject("student", truth, noise).draw(prompts, 5, lambda done: None)
    rows = []
    for name, source in (("int8 after training", student), ("int8, trained for it", qat)):
        made = export_many(
            source,
            [("ort", "int8")],
            folder / f"qat-{source.parent.name}",
            ExportSettings(strict=False),
            rebuild=True,
        )[0]
        assert made.place is not None
        drawn = Pipeline.load(made.place)(prompts, seed=5).images
        if drawn is None:
            raise ValueError(f"{made.place}: without a decoder, no pictures to compare")
        found = psnr(reference, drawn, 255.0)
        judged = "-" if features is None else f"{features.distance(reference, drawn):.5f}"
        rows.append([name, f"{np.mean(found):.2f}", f"{min(found):.2f}", judged])
    return rows


def markdown(headings: tuple[str, ...], rows: list[list[str]]) -> str:
    """A table."""
    filled = [[*row, *[""] * (len(headings) - len(row))] for row in rows]
    lines = [headings, ["---"] * len(headings), *filled]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path, nargs="?", default=Path("runs/latest/student"))
    parser.add_argument("--qat", type=Path)
    parser.add_argument("--only", action="append", help="a target, or TARGET:PRECISION")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/latest/targets"))
    args = parser.parse_args()
    wanted = pairs(["all"], ["all"])
    if args.only:
        wanted = [p for p in wanted if p[0] in args.only or ":".join(p) in args.only]
    rows, sha256 = [], load_student(args.student).sha256
    for pair in wanted:
        place = args.out / "-".join(pair)
        old = (place / "manifest.json").is_file() and Manifest.read(place).student.sha256
        rows += export_many(
            args.student, [pair], place, ExportSettings(), rebuild=old != sha256, keep_going=True
        )
        print("  ".join(line(rows[-1], "")), flush=True)
    # All in one go, so that one machine in one state is what they are measured on.
    timings = [latency(row.place, args.runs) if row.place else "" for row in rows]
    table = [line(row, timing) for row, timing in zip(rows, timings, strict=True)]
    text = f"{os.cpu_count()} cores, torch {version('torch')}, one picture a call\n\n"
    text += markdown(HEADINGS, table)
    if args.qat:
        headings = ("against the float student", "picture dB", "worst", "LPIPS-like")
        text += "\n" + markdown(headings, compare_qat(args.student, args.qat, args.out))
    write_text(args.out / "targets.md", text)
    results = [
        {**asdict(replace(row, problem=None)), "place": str(row.place or ""), "latency": timing}
        for row, timing in zip(rows, timings, strict=True)
    ]
    write_json(args.out / "targets.json", results)
    print(f"\n{text}\n{args.out / 'targets.md'}")


if __name__ == "__main__":
    main()

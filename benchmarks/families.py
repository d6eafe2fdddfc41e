"""Every family of teachers, from a tiny checkpoint of real classes on the disk.

`python benchmarks/families.py [FAMILY ...]` prints for each: the largest difference of its guided
samples from diffusers' own pipeline (same noise, 2 steps), seconds of two training steps of two
methods in both role modes, and the parity of its exported student, worst graph and final sample.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from one_student import open_one

from edgedistill import recipes
from edgedistill.proof.drawing import differences
from edgedistill.teachers import load_teacher
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.tiny import TINY, make_tiny
from edgedistill_export.bundle import ExportSettings, export_student
from edgedistill_export.parity import ParityError
from edgedistill_runtime.manifest import Manifest

SHORT = ["teacher.tiny=true", "train.steps=2", "train.batch_size=2", "train.adapter.rank=2"]
RUNS = [(name, roles) for name in ("emoji-lcm", "emoji-dmd2") for roles in ("copies", "adapters")]
HEADINGS = (
    *("family", "load s", "parameters", "from diffusers"),
    *(f"{name.removeprefix('emoji-')} {roles} s" for name, roles in RUNS),
    *("worst graph dB", "final dB"),
)


def difference(family: str, folder: Path) -> str:
    """Largest difference of guided samples from the pipeline's, relative to the largest."""
    teacher = load_teacher(family, folder)
    assert isinstance(teacher, PipelineTeacher)
    found = differences(teacher)
    return f"{found['sample']:.1e}"


def exported(student: Path, out: Path) -> list[str]:
    """Parity of the bundle in dB, or why there is none."""
    try:
        place = export_student(
            student, "ort", out=out, settings=ExportSettings(prompts=["red", "blue"])
        )
    except (ParityError, ValueError) as error:
        return [str(error), ""]
    parity = Manifest.read(place).parity
    worst = min(graph.worst for graph in parity.graphs.values())
    return [f"{worst:.0f}", f"{parity.final.worst:.0f}"]


def row(family: str, work: Path) -> list[str]:
    """The cells of one family."""
    folder = make_tiny(family, work / "teacher")
    start = time.perf_counter()
    teacher = load_teacher(family, folder)
    cells = [family, f"{time.perf_counter() - start:.1f}"]
    cells += [f"{sum(p.numel() for p in teacher.net.parameters()):,}", difference(family, folder)]
    for name, roles in RUNS:
        choices = [*SHORT, f"teacher.family={family}", f"train.roles={roles}"]
        if not teacher.prompts:  # nor anything to guide away from
            choices.append("teacher.guidance=1")
        run = open_one(recipes.load(name, choices), work / f"{name}-{roles}", runs=work)
        start = time.perf_counter()
        student = run.train(lambda step, figures: None)
        cells.append(f"{time.perf_counter() - start:.1f}")
    return [*cells, *exported(student, work / "bundle")]


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=sorted(TINY))
    args = parser.parse_args()
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}", flush=True)
    for family in args.families:
        with tempfile.TemporaryDirectory() as work:
            print(f"| {' | '.join(row(family, Path(work)))} |", flush=True)


if __name__ == "__main__":
    main()

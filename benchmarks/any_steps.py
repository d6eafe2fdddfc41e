"""One student of a planar mixture in several numbers of steps, with the same weights.

    python benchmarks/any_steps.py RUN ... [--steps 1,2,4,8]

For students whose steps draw noise (`student.sampler=renoise`) and that have no consistency
boundary: `hyper-sd`, `asd`, `pcm` with one segment, `dmd2`. Prints, for each run and number of
steps, sliced W2 over the floor of two true draws, share of samples within 3 sigma, and the
smallest mode's share over its weight, of 10,000 samples, as `benchmarks/methods.py` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.solvers import student_times
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.evaluation.planar import planar_figures
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.mixture import Mixture

SAMPLES, SEED = 10_000, 1234
KEYS = ("w2_ratio", "within_3_sigma", "smallest_mode")


def figures(run: Path, steps: int) -> list[float]:
    """Figures of a run's student in so many steps.

    Raises:
        ValueError: If the student is not of a mixture, or its table is no few-step table with
            noise in each step and no boundary.
    """
    student = load_student(run)
    if not isinstance(student.teacher, Mixture):
        raise ValueError(f"{run}: no student of a planar mixture")

    def made(count: int) -> TorchStepTable:
        schedule = student.teacher.denoiser.schedule
        times = student_times(schedule, count, "trailing", "renoise")
        return few_step_table(schedule, student.info.prediction, times, "renoise")

    if student.table != made(len(student.table.rows)):
        raise ValueError(f"{run}: its steps are not those of student.sampler=renoise alone")
    table = made(steps)
    generator = torch.Generator().manual_seed(SEED)
    noise = table.draw((SAMPLES, *student.teacher.sample_shape), generator)
    with torch.no_grad():
        samples = table.sample(student.net, noise, {})
    found = planar_figures(samples, student.teacher, generator)
    return [found[key] for key in KEYS]


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--steps", default="1,2,4,8")
    args = parser.parse_args()
    for run in args.runs:
        for steps in map(int, args.steps.split(",")):
            floors, within, smallest = figures(run, steps)
            print(f"{run.name:24} {steps:3}  {floors:6.2f} {within:6.3f} {smallest:6.2f}")


if __name__ == "__main__":
    main()

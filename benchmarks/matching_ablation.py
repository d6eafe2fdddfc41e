"""What each part of distribution matching is worth, where the truth is known.

    python benchmarks/matching_ablation.py [ROW ...] [--steps 2000] [--mixture ring]

Distils `mixture-dmd2`, shortened to about ten minutes for all rows on one core, with one change a
row: no warm-up of the fake score, other numbers of its turns to one of the student, the gradient
without its normaliser, later steps started from data in place of the student's own samples, a GAN
head beside; and the same once more without any regression on the teacher's ODE, which hides what
the rest is worth.

Prints for each the sliced W2 over the floor of two true draws, the share of samples within 3
sigma, the smallest mode's share over its weight, and figures of the last quarter of the run: how
much farther the fake score's x0 is from the sample than the teacher's is (`lag`, in percent: above
0 it does not keep up), how much of the two scores' difference is the fake score's own error
(`error`), and the gradient's size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from one_student import open_one

from edgedistill import recipes
from edgedistill.evaluation.planar import planar_figures
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.training.metrics import read_metrics

SAMPLES = 10_000
CHANGES: dict[str, list[str]] = {
    "no warm-up": ["objective.warmup_steps=0"],
    "turns 1": ["objective.turns=1"],
    "turns 2": ["objective.turns=2"],
    "turns 4": ["objective.turns=4"],
    "turns 8": ["objective.turns=8"],
    "no normaliser": ["objective.name=vsd", "objective.weight=x0"],
    "rollout data": ["objective.rollout=data"],
    "GAN": ["objective.gan_weight=0.005", "objective.classify_weight=0.1"],
}
"""Overrides of mixture-dmd2, whose own turns are 3."""
ALONE = ["objective.pretraining_steps=0", "objective.regression_weight=0"]
ROWS: dict[str, list[str]] = {
    "as it is": [],
    "no regression before": ALONE[:1],
    **CHANGES,
    "alone": ALONE,
    **{f"alone, {name}": [*ALONE, *words] for name, words in CHANGES.items()},
}
"""`alone` is without regression, before the matching or beside it."""


def run(row: str, steps: int, mixture: str, folder: Path) -> str:
    """Distil with one change: a line of the table."""
    words = [
        f"teacher.path={mixture}",
        f"train.steps={steps}",
        f"objective.pretraining_steps={2 * steps // 5}",
        f"objective.warmup_steps={steps // 20}",
        *ROWS[row],
    ]
    start = time.perf_counter()
    recipe = recipes.load("mixture-dmd2", words)
    made = open_one(recipe, folder, runs=folder.parent)
    student = load_student(made.train(lambda step, figures: None))
    seconds = time.perf_counter() - start
    assert isinstance(student.teacher, Mixture)
    generator = torch.Generator().manual_seed(1234)
    noise = student.table.draw((SAMPLES, *student.teacher.sample_shape), generator)
    figures = planar_figures(student.sample({}, noise), student.teacher, generator)
    late = [line for line in read_metrics(folder) if line["step"] > 0.75 * steps]
    fake, teacher, error, size = (
        sum(line[f"student/{name}"] for line in late) / len(late)
        for name in ("lag", "teacher_lag", "fake_error", "matching")
    )
    return (
        f"{row:22} {figures['w2_ratio']:6.2f} {figures['within_3_sigma']:7.3f} "
        f"{figures['smallest_mode']:8.3f} {100 * (fake / teacher - 1):6.2f} {error:6.2f} "
        f"{size:8.3f} {seconds:4.0f}"
    )


def main() -> None:
    """Print the table, a line as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--mixture", default="ring", help="a shipped name or a file")
    args = parser.parse_args()
    for row in set(args.rows) - set(ROWS):
        parser.error(f"no row {row!r}; there are {', '.join(ROWS)}")
    torch.set_num_threads(1)
    print(f"{'':22} floors  within smallest  lag %  error gradient    s", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for i, row in enumerate(args.rows or ROWS):
            print(run(row, args.steps, args.mixture, Path(scratch) / str(i)), flush=True)


if __name__ == "__main__":
    main()

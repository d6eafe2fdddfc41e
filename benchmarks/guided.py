"""Methods that guidance is for, on a mixture of two classes, where the truth is known.

    python benchmarks/guided.py [ROW ...] [--scale 2]        # `make guided`

The modes of `classes` have labels, so that p(c | x)^w p(x), the density that guidance with the
scale w names, can be drawn from exactly. A guided teacher does not draw it: at every noise level
its score is that of another density than the noised one. The table says how far students are from
either, in floors of two draws: `named` from the density, `teacher` from what the guided teacher
draws, and `class` from the class without guidance. The first rows are the teacher's own. No row
but nfsd's has a regression on the teacher's paths. A run that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from one_student import open_one
from torch import Tensor

from edgedistill import recipes
from edgedistill.diffusion.solvers import solve, time_grid
from edgedistill.evaluation.planar import class_w2, planar_figures
from edgedistill.recipes.schema import Recipe
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.mixture import Mixture

MIXTURE, SAMPLES, SEED = "classes", 10_000, 1234
ALONE = ("objective.pretraining_steps=0", "objective.regression_weight=0")
APART = "objective.matched_levels=interval"
"""Keeps the samples of a student's steps apart."""
SID = ("mixture-sid", *ALONE)
ROWS: dict[str, tuple[str, ...]] = {
    "guidance": ("mixture-guidance",),
    "guide-adapter": ("mixture-guide-adapter",),
    "dmd2": ("mixture-dmd2", *ALONE),
    "dmd2 interval": ("mixture-dmd2", *ALONE, APART),
    "decoupled-dmd": ("mixture-decoupled-dmd",),
    "sid": SID,
    "sid interval": (*SID, APART),
    "sid long-short": (*SID, "objective.guidance=long-short"),
    "sid zero": (*SID, "objective.guidance=zero"),
    "sid anti": (*SID, "objective.guidance=anti"),
    "pg-sb": ("mixture-pg-sb",),
    "nfsd": ("mixture-nfsd",),
    "sds": ("mixture-sds",),
}
"""Recipe and overrides of a row."""


@dataclass(frozen=True)
class Truth:
    """What the samples of a row are compared with; a draw has its classes in `label`."""

    mixture: Mixture
    label: Tensor
    scale: float

    def teacher(self, noise: Tensor, scale: float) -> Tensor:
        """The ends of the teacher's exact paths."""
        grid = time_grid(self.mixture.denoiser.schedule, 200)
        return solve(self.mixture.guided(scale), noise, grid, {"label": self.label}, "heun")

    def line(self, name: str, samples: Tensor, ends: tuple[Tensor, Tensor]) -> str:
        """A row of the table; `ends` are two draws of the guided teacher."""
        named, plain = (
            planar_figures(
                samples, self.mixture, torch.Generator().manual_seed(SEED), self.label, scale
            )
            for scale in (self.scale, 1.0)
        )
        floor = self._apart(*ends)
        figures = (named["w2_ratio"], self._apart(samples, ends[0]) / floor, plain["w2_ratio"])
        cells = [f"{value:.2f}" for value in figures]
        cells += [f"{named['within_3_sigma']:.3f}", f"{named['smallest_mode']:.2f}"]
        return f"| {name} | {' | '.join(cells)} |"

    def _apart(self, a: Tensor, b: Tensor) -> float:
        return class_w2(a, b, self.label, torch.Generator().manual_seed(SEED))


def recipe_of(row: str, scale: float) -> Recipe:
    """A row's recipe at this scale."""
    name, *words = ROWS[row]
    return recipes.load(name, [f"teacher.path={MIXTURE}", f"teacher.guidance={scale:g}", *words])


def distilled(recipe: Recipe, folder: Path) -> tuple[Path, float]:
    """The student's folder, and the seconds of the processor if it was made now."""
    student, start = folder / "student", time.process_time()
    if (student / "student.json").is_file():
        return student, 0.0
    run = open_one(recipe, folder, runs=folder.parent)
    run.train(lambda step, figures: None)
    return student, time.process_time() - start


def main() -> None:
    """Print the table, a line as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=list(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--scale", type=float, default=2.0, help="of guidance, above 1")
    parser.add_argument("--out", type=Path, default=Path("runs/guided"))
    args = parser.parse_args()
    if args.scale <= 1 or not {*args.rows} <= ROWS.keys():
        parser.error(f"--scale above 1, and rows of {', '.join(ROWS)} expected")
    torch.set_num_threads(1)
    mixture = Mixture.load(MIXTURE)
    generator = torch.Generator().manual_seed(SEED)
    label = mixture.draw_with_labels(SAMPLES, generator)[1]["label"]
    truth = Truth(mixture, label, args.scale)
    noises = [torch.randn(SAMPLES, 2, generator=generator) for _ in range(2)]
    ends = (truth.teacher(noises[0], args.scale), truth.teacher(noises[1], args.scale))
    print("| row | named | teacher | class | within | smallest | s |")
    print("|---|---|---|---|---|---|---|")
    other = truth.teacher(torch.randn(SAMPLES, 2, generator=generator), args.scale)
    print(truth.line("the guided teacher", other, ends))
    print(truth.line("the teacher without guidance", truth.teacher(noises[0], 1.0), ends))
    for row in args.rows:
        folder = args.out / f"{row.replace(' ', '-')}-{args.scale:g}"
        place, seconds = distilled(recipe_of(row, args.scale), folder)
        student = load_student(place)
        noise = student.table.draw((SAMPLES, 2), generator)
        samples = student.sample({"label": label}, noise)
        print(f"{truth.line(row, samples, ends)} {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"guided: {error}")

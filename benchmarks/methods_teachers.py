"""Methods on the teachers of `examples/`, which have not learned their pictures by heart.

    python benchmarks/methods_teachers.py fashion [METHOD ...] [--steps 4,1] [--samples 2000]

Distils `examples/fashion`'s teacher (or `portraits`) by each method in each number of steps, one
run at a time on one thread, and draws the same prompts by the teacher at several numbers of calls
and by each student. Prints for each the Frechet distance to real pictures and the share of what a
prompt names that its picture shows, with 95 % intervals, the variety (the distance of two pictures
of one prompt, over that of any two real ones), and the minutes of training. OUT/TEACHER.json has
the same, and OUT/TEACHER-STEPS.png pictures of each. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judges import ROOT, Fashion, Judge, Pictures, Portraits
from methods_emoji import sheet
from omegaconf import OmegaConf
from one_student import open_one
from torch import Tensor

from edgedistill.common.files import write_json
from edgedistill.draw.subjects import Subject, student_subject, teacher_subject
from edgedistill.evaluation.fidelity import Reference, frechet_distance, half_interval
from edgedistill.recipes import resolve
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill_runtime.noise import noise

SEED, SHOWN = 7, 16
"""Seed of the samples, and how many pictures of each a sheet shows."""

Section = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A teacher: how recipes name it, and who judges it.

    Attributes:
        judge: Class of its judge, given the example's output folder.
        recipe: Sections that every method's recipe gets.
        baselines: (solver, steps) of the teacher itself; the first one is what is distilled.
        unguided: The same without guidance, of a teacher that is distilled with guidance.
    """

    judge: type[Fashion] | type[Portraits]
    recipe: Section
    baselines: tuple[tuple[str, int], ...]
    unguided: tuple[tuple[str, int], ...] = ()


TRAIN: Section = {
    "batch_size": 32,
    "precision": "bf16",
    "lr_schedule": "cosine",
    "lr_warmup_steps": 20,
    "ema": 0.98,
    "checkpoint_every": 1000,
}
KINDS = {
    "fashion": Kind(
        judge=Fashion,
        recipe={
            "teacher": {"family": "unet2d", "guidance": 1.0, "solver": "heun", "steps": 13},
            "train": TRAIN,
        },
        baselines=(("heun", 13), ("ddim", 8), ("dpm++2m", 8), ("ddim", 4), ("dpm++2m", 4)),
    ),
    "portraits": Kind(
        judge=Portraits,
        recipe={
            "teacher": {"family": "stable_diffusion", "guidance": 2.0, "steps": 25},
            "train": TRAIN,
        },
        baselines=(("ddim", 25), ("ddim", 8), ("dpm++2m", 8), ("ddim", 4), ("dpm++2m", 4)),
        unguided=(("ddim", 25), ("ddim", 4), ("dpm++2m", 4)),
    ),
}

ADVERSARIAL: Section = {"lr": 1.0e-3, "betas": [0.0, 0.98]}
FAKE: Section = {"lr": 2.0e-4, "betas": [0.0, 0.98]}
METHODS: dict[str, Section] = {
    "lcm": {
        "student": {"sampler": "renoise"},
        "objective": {"name": "lcm", "solver_steps": 25, "ema": 0.95},
        "train": {"steps": 300, "optim": {"name": "muon", "lr": 4.0e-4, "betas": [0.9, 0.98]}},
    },
    "imf": {
        "student": {"sampler": "ddim"},
        "objective": {"name": "imf", "velocity": "teacher"},
        "train": {"steps": 150, "optim": {"name": "muon", "lr": 4.0e-4, "betas": [0.9, 0.98]}},
    },
    "progressive": {
        "student": {"sampler": "ddim"},
        "objective": {"name": "progressive", "stages": 3, "ema": 0.9},
        "train": {"steps": 300, "optim": {"name": "muon", "lr": 4.0e-4, "betas": [0.9, 0.98]}},
    },
    "kd": {
        "student": {"sampler": "ddim"},
        "data": {"samples": 1000},
        "objective": {"name": "kd"},
        "train": {"steps": 300, "optim": {"name": "muon", "lr": 4.0e-4, "betas": [0.9, 0.98]}},
    },
    "dmd2": {
        "student": {"sampler": "renoise"},
        "objective": {
            "name": "dmd2",
            "turns": 3,
            "gan_weight": 0.0,
            "matched_levels": "interval",
            "fake_score": FAKE,
        },
        "train": {"steps": 400, "optim": {"lr": 1.0e-4, "betas": [0.0, 0.98]}},
    },
    "sid": {
        "student": {"sampler": "renoise"},
        "objective": {"name": "sid", "turns": 3, "fake_score": FAKE},
        "train": {"steps": 400, "optim": {"lr": 1.0e-4, "betas": [0.0, 0.98]}},
    },
    "ladd": {
        "student": {"sampler": "renoise"},
        "objective": {
            "name": "ladd",
            "heads_per_step": True,
            "turns": 2,
            "times": {"kind": "logit-normal", "mean": -0.5, "std": 1.0},
            "discriminator": ADVERSARIAL,
        },
        "train": {"steps": 400, "optim": {"lr": 3.0e-5, "betas": [0.0, 0.98]}},
    },
    "oss": {
        "teacher": {"guidance": 1.0},  # it trains no network that could take guidance in
        "student": {"sampler": "ddim"},
        "data": {"samples": 64},
        "objective": {"name": "oss"},
        "train": {"steps": 1},
    },
}
"""Sections of each method: regression, matching, adversarial, and a choice of times alone."""


@dataclass(frozen=True)
class Row:
    """Figures of a subject; `_half` are half widths of 95 % intervals."""

    name: str
    calls: int
    fd: float
    fd_half: float
    right: float
    right_half: float
    variety: float
    minutes: float | None = None

    def text(self) -> str:
        """As in the table."""
        minutes = "" if self.minutes is None else f"{self.minutes:.1f}"
        return (
            f"{self.name:20} {self.calls:5} {self.fd:7.2f} +- {self.fd_half:<5.2f} "
            f"{self.right:.3f} +- {self.right_half:.3f} {self.variety:6.3f} {minutes:>7}"
        )


@dataclass(frozen=True)
class Bench:
    """The judge with what all subjects are compared with.

    Attributes:
        judge: The judge.
        prompts: Prompts of the pictures.
        real: Statistics of the real pictures' features.
        variety: Distance of any two real pictures.
        folder: Where pictures that were drawn are kept.
    """

    judge: Judge
    prompts: list[str]
    real: Reference
    variety: float
    folder: Path

    @classmethod
    def of(cls, judge: Judge, samples: int, folder: Path) -> Bench:
        """Read the real pictures' features."""
        features, prompts = judge.reference(), judge.asked(samples)
        return cls(judge, prompts, Reference.of(features), spread(features), folder)

    def drawn(self, subject: Subject, minutes: float | None = None) -> tuple[Row, Pictures]:
        """Figures of a subject, and its first pictures; the same as before if they are kept."""
        count = len(self.prompts)
        file = self.folder / f"{subject.name} {subject.calls} {count}.npy".replace(" ", "-")
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(file, subject.draw(self.prompts, SEED, lambda done: None))
        pictures = np.load(file)
        row = self.measure(subject.name, subject.calls, pictures, self.prompts, minutes)
        return row, pictures[:SHOWN]

    def measure(
        self,
        name: str,
        calls: int,
        pictures: Pictures,
        prompts: list[str],
        minutes: float | None = None,
    ) -> Row:
        """Figures of pictures (N, H, W, 3) of prompts, which took `calls` network calls each."""
        features = self.judge.features(pictures)
        right = self.judge.right(pictures, prompts)

        def distance(some: Tensor) -> float:
            return frechet_distance(Reference.of(some), self.real)

        return Row(
            name=name,
            calls=calls,
            fd=distance(features),
            fd_half=half_interval(features, distance) or 0.0,
            right=right.mean().item(),
            right_half=1.96 * (right.std() / len(right) ** 0.5).item(),
            variety=within(features, prompts) / self.variety,
            minutes=minutes,
        )


def spread(features: Tensor) -> float:
    """Root mean squared distance between two of features (N, D), taken at random."""
    centred = features.double() - features.double().mean(0)
    return float((2 * centred.square().sum() / (len(features) - 1)).sqrt())


def within(features: Tensor, prompts: list[str]) -> float:
    """The same between two samples of one prompt; of all where no prompt is asked for twice."""
    groups = [torch.tensor([p == name for p in prompts]) for name in dict.fromkeys(prompts)]
    several = [features[rows] for rows in groups if rows.sum() > 1]
    if not several:
        return spread(features)
    return float(np.sqrt(np.mean([spread(group) ** 2 for group in several])))


def trained(data: Section, folder: Path) -> float:
    """Distil into `folder` if no student is there; minutes of the processor."""
    file = folder / "minutes.json"
    if not file.is_file():
        resume = (folder / "recipe.yaml").exists()
        before = time.process_time()
        run = open_one(resolve(data), folder, resume=resume, runs=Path("runs"))
        run.train(lambda *_: None)
        write_json(file, (time.process_time() - before) / 60)
    return float(json.loads(file.read_text("utf-8")))


def training_data(judge: Judge, method: Section) -> Section:
    """What a method's recipe says of data: pictures, or prompts if it learns from samples."""
    if "data" not in method:
        return {"pictures": str(judge.photographs())}
    prompts = judge.captions(method["data"]["samples"])
    return method["data"] if prompts is None else {**method["data"], "prompts": str(prompts)}


def rows(
    kind: Kind, bench: Bench, path: Path, methods: list[str], steps: list[int], out: Path
) -> list[Row]:
    """Measure the teacher and each method, a line as soon as it is there."""
    teacher = load_teacher(kind.recipe["teacher"]["family"], str(path))
    found = list[Row]()
    shown: dict[int, dict[str, Pictures]] = {}

    def add(row: Row, pictures: Pictures, sheets: list[int]) -> None:
        found.append(row)
        for count in sheets:
            shown.setdefault(count, {})[row.name] = pictures
        print(row.text(), flush=True)

    real, names = bench.judge.held_out(len(bench.prompts))
    add(bench.measure("real, held out", 0, real, names), real[:SHOWN], [])
    own = [("teacher", kind.recipe["teacher"]["guidance"], each) for each in kind.baselines]
    own += [("unguided", 1.0, each) for each in kind.unguided]
    for name, guidance, (solver, count) in own:
        subject = teacher_subject(
            f"{name} {solver}", teacher, noise, guidance=guidance, steps=count, solver=solver
        )
        add(*bench.drawn(subject), steps)
    for name in methods:
        for count in steps:
            folder = out / f"{name}-{count}"
            given: Section = {
                "teacher": {"path": str(path)},
                "student": {"steps": count},
                "data": training_data(bench.judge, METHODS[name]),
            }
            recipe = OmegaConf.merge(kind.recipe, METHODS[name], given)
            plain = OmegaConf.to_container(recipe)
            assert isinstance(plain, dict)
            sections = {str(key): value for key, value in plain.items()}
            minutes = trained({"name": folder.name, **sections}, folder)
            student = load_student(folder / "student")
            add(*bench.drawn(student_subject(folder.name, student, noise), minutes), [count])
    for count, pictures in shown.items():
        sheet(pictures).save(out / f"{path.parents[1].name}-{count}.png")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", choices=KINDS)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--steps", default="4,1")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--work", type=Path, help="output folder of the example")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = args.work or ROOT / "examples" / args.teacher / "output"
    out = args.out or Path("runs") / f"methods-{args.teacher}"
    kind = KINDS[args.teacher]
    bench = Bench.of(kind.judge(work), args.samples, out / "pictures")
    print("subject              calls      FD, +-       right, +-       variety minutes")
    steps = [int(word) for word in args.steps.split(",")]
    found = rows(kind, bench, work / "pipeline", args.methods or [*METHODS], steps, out)
    write_json(out / f"{args.teacher}.json", [asdict(row) for row in found])


if __name__ == "__main__":
    main()

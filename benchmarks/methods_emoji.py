"""Methods on the emoji teacher at 4, 2 and 1 steps: quality, pictures and minutes.

    python benchmarks/methods_emoji.py RECIPE ... [--steps 4,2,1] [--samples 512] [--threads 1]

Distils each recipe in each number of steps, one run at a time, and prints FD and text-image
score on trained captions, FD on combinations never trained, the diversity of pictures of a caption
over the teacher's where many pictures answer it, CPU minutes, and with --memory the peak memory of
training with copies and with adapters of rank 8, less the libraries'. OUT/methods.json has the
same, OUT/methods-STEPS.png the same captions by each. A run that is there already is not repeated,
and keeps the minutes it took.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgedistill.common.pictures import grid
from edgedistill.draw.subjects import Subject, student_subject, teacher_subject
from edgedistill.evaluation.captions import prompt_sets
from edgedistill.evaluation.evaluate import evaluate_pictures
from edgedistill.evaluation.fidelity import Reference
from edgedistill.networks.clip import Features
from edgedistill.students.folder import Student, load_student
from edgedistill.teachers import load_teacher
from edgedistill_runtime.noise import noise

SEED, SHOWN = 1234, 16
"""Of the samples; how many captions of the teacher's own grid the sheet has."""
GUIDANCE, TEACHER_STEPS = 2.0, 25
"""Of the teacher whose diversity is 1: what the recipes distil."""
MARGIN = 150
"""Pixels left of the sheet for names."""
HEADINGS = f"{'recipe':20} steps      FD text-image FD unseen diversity minutes       memory"


@dataclass(frozen=True)
class Row:
    """Figures of one run."""

    recipe: str
    steps: int
    fd: float
    text_image: float
    unseen_fd: float
    diversity: float
    minutes: float | None
    memory: tuple[int, int] | None
    """MiB with copies, and with adapters."""

    def text(self) -> str:
        """As in the table."""
        minutes = "-" if self.minutes is None else f"{self.minutes:.1f}"
        memory = "-" if self.memory is None else f"{self.memory[0]}, {self.memory[1]}"
        return (
            f"{self.recipe:20} {self.steps:5} {self.fd:7.2f} {self.text_image:10.1f} "
            f"{self.unseen_fd:9.1f} {self.diversity:9.2f} {minutes:>7} {memory:>12}"
        )


def train(recipe: str, steps: int, folder: Path, threads: int) -> float | None:
    """Minutes of the run; None if it was there without saying."""
    file = folder / "minutes.json"
    if (folder / "student" / "student.json").is_file():
        return float(json.loads(file.read_text("utf-8"))) if file.is_file() else None
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "edgedistill.cli", "distill", f"recipe={recipe}"]
    command += [f"student.steps={steps}", f"out={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    before = processor_seconds()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{recipe} at {steps}: {done.stderr.strip().splitlines()[-1]}")
    minutes = (processor_seconds() - before) / 60
    file.write_text(f"{minutes:.2f}", encoding="utf-8")
    return minutes


def processor_seconds() -> float:
    """That processes started here and ended have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@cache
def peaks(recipe: str) -> tuple[int, int]:
    """Peak memory of training in MiB less the libraries', with copies and with adapters.

    Of the recipe as it is: the number of steps makes no difference to it.
    """
    script = Path(__file__).with_name("training_memory.py")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "memory.json"
        command = [
            sys.executable,
            str(script),
            recipe,
            "train.adapter.rank=8",
            "--json",
            str(file),
        ]
        subprocess.run(command, check=True, capture_output=True)
        found = json.loads(file.read_text("utf-8"))["bytes"]
    copies, adapters = (
        round((found[mode]["training"] - found[mode]["libraries"]) / 2**20)
        for mode in ("copies", "adapters")
    )
    return copies, adapters


def figures(subject: Subject, captions: dict[str, list[str]], samples: int) -> dict[str, Any]:
    """Of a subject on captions by kind, "seen" among them."""
    shipped = Path(load_teacher("stable_diffusion", "emoji").path)
    results, _ = evaluate_pictures(
        [subject],
        captions,
        Features(str(shipped / "clip")),
        Reference.load(shipped / "reference.safetensors"),
        samples,
        SEED,
        lambda name, done, total: None,
    )
    found: dict[str, Any] = results[subject.name]
    return found


def measure(recipe: str, student: Student, args: argparse.Namespace, minutes: float | None) -> Row:
    """Quality of a student."""
    captions = prompt_sets(load_teacher("stable_diffusion", "emoji"), None)
    found = figures(
        student_subject("student", student, noise),
        {kind: captions[kind] for kind in ("seen", "unseen", "open")},
        args.samples,
    )
    return Row(
        recipe=recipe,
        steps=found["calls"],
        fd=found["fd"],
        text_image=found["text_image_score"],
        unseen_fd=found["unseen"]["fd"],
        diversity=found["open"]["diversity"] / args.teacher,
        minutes=minutes,
        memory=peaks(recipe) if args.memory else None,
    )


def teachers_diversity(samples: int) -> float:
    """Of the guided teacher, on captions that many pictures answer."""
    teacher = load_teacher("stable_diffusion", "emoji")
    captions = {"seen": prompt_sets(teacher, None)["open"]}
    subject = teacher_subject("teacher", teacher, noise, guidance=GUIDANCE, steps=TEACHER_STEPS)
    found: float = figures(subject, captions, samples // 3)["diversity"]
    return found


def drawn(student: Student) -> NDArray[np.uint8]:
    """Every few captions of the teacher's grid, (SHOWN, H, W, 3)."""
    shipped = Path(load_teacher("stable_diffusion", "emoji").path)
    prompts = json.loads((shipped / "prompts.json").read_text("utf-8"))["grid"]
    subject = student_subject("student", student, noise)
    pictures: NDArray[np.uint8] = subject.draw(
        prompts[:: len(prompts) // SHOWN][:SHOWN], SEED, lambda done: None
    )
    return pictures


def sheet(found: dict[str, NDArray[np.uint8]]) -> Image.Image:
    """Rows of pictures (SHOWN, H, W, 3) by name, the name beside each."""
    pictures = grid(np.concatenate(list(found.values())), columns=SHOWN)
    paper = Image.new("RGB", (pictures.width + MARGIN, pictures.height), "white")
    paper.paste(pictures, (MARGIN, 0))
    pen, height = ImageDraw.Draw(paper), pictures.height / len(found)
    for row, name in enumerate(found):
        pen.text((4, (row + 0.5) * height), name, "black", anchor="lm")
    return paper


def main() -> None:
    """Print the table, a line as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--steps", default="4,2,1")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="peak memory of training as well")
    parser.add_argument("--out", type=Path, default=Path("runs/methods-emoji"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.teacher = teachers_diversity(args.samples)
    print(HEADINGS, flush=True)
    rows, failed = [], 0
    sheets: dict[int, dict[str, NDArray[np.uint8]]] = {}
    for recipe in args.recipes:
        for steps in map(int, args.steps.split(",")):
            folder = args.out / f"{recipe}-{steps}"
            try:
                minutes = train(recipe, steps, folder, args.threads)
                student = load_student(folder / "student")
            except (RuntimeError, ValueError) as error:
                failed += 1
                print(f"{recipe:20} {steps:5} failed: {error}", flush=True)
                continue
            rows.append(measure(recipe, student, args, minutes))
            sheets.setdefault(steps, {})[recipe] = drawn(student)
            print(rows[-1].text(), flush=True)
    if rows:
        text = json.dumps([asdict(row) for row in rows], indent=1)
        (args.out / "methods.json").write_text(text, encoding="utf-8")
        for steps, found in sheets.items():
            sheet(found).save(args.out / f"methods-{steps}.png")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

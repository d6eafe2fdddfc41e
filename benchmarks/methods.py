"""Every method on planar mixtures, where the truth is known.

    python benchmarks/methods.py [METHOD ...] [--mixtures ring,grid,clusters] [--jobs 2]

Distils `mixture-METHOD` from each mixture (a shipped name or a file), one core a run, and prints
for each: the student's steps, sliced W2 over the floor of two true draws, share of samples within
3 sigma, the smallest mode's share over its weight, the root mean square distance to the end of the
teacher's exact ODE path (where the student takes one noise), seconds of the processor, and lines
of the method's file. `missed` names the goals that were: at 4 steps 2 floors, 85 %, 60 %; at one
step 2 floors, 70 %, 40 %; 90 s. `exact` are the three figures with exact functions in place of the
networks, where these are known (`exact_limits.EXACT`). The one goal of `oss`, which only searches
times, is a distance from the paths at most 5 % above that of the best times.
--one-step runs what `ONE_STEP` lists in one step too, and --alone runs methods that have a
regression on the teacher's paths without it too, in as many steps as their recipe: what is then
left is the method's own. --only-alone runs nothing else.

Runs that are there already are not repeated (`methods_runs.py`); --again repeats them. Figures go
to OUT/methods.json as they come.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from methods_runs import PREFIX, Case, Row, spread, students_of

from edgedistill import recipes
from edgedistill.common.files import write_text
from edgedistill.recipes.schema import Recipe
from edgedistill.teachers.families.mixture import Mixture

MIXTURES = "ring,grid,clusters"
HEADINGS = (
    *("method", "mixture", "steps", "W2", "floors", "within", "smallest", "from ODE", "s"),
    *("lines", "missed"),
)
ONE_STEP = {
    "add": "1 to 4 steps (abstract)",
    "backward-distill": "one to three steps (abstract)",
    "cd": "one step by design (abstract)",
    "ct": "a single sampling step (abstract)",
    "ctm": "single-step sampling (abstract)",
    "diff-instruct": "single-step models (abstract)",
    "diffusion2gan": "a single-step conditional GAN (abstract)",
    "disback": "a one-step student generator (abstract)",
    "dmd2": "one-step image generation (abstract); five recipes here",
    "embedding": "one-step generators (abstract)",
    "f-distill": "one-step diffusion models (title)",
    "flow-map": "one or few steps (its project page)",
    "kd": "one step takes the noise to the end of the path",
    "lcm": "emoji-1step here",
    "lightning": "one-step and few-step (abstract)",
    "meanflow": "one-step generative modelling (title)",
    "pcm": "1 to 16 steps (abstract); measured on emoji here",
    "pi-flow": "one call on ImageNet (abstract)",
    "progressive": "measured on emoji here",
    "reflow": "a single Euler step (abstract)",
    "scm": "measured on emoji here",
    "self-corrected": "one-step and few-step (title)",
    "shortcut": "one step diffusion (title)",
    "sid": "one-step generation (title)",
    "tbcm": "one-step generation (abstract)",
    "tract": "single-step samples (abstract)",
    "twinflow": "one-step generation (title)",
    "ufogen": "you forward once (title)",
    "uni-instruct": "one-step diffusion model (title)",
}
"""Methods with a recipe of several steps that claim to do it in one as well, and where. Recipes of
one step, such as `boot` and `dmd`, run as they are."""
ONE_PATH = ("objective.regression_steps=16",)
"""The recipes' 8 solver steps a student's step are too few for the whole path: on `grid` they lose
a sixth of the smallest mode, and every method that starts from them with them."""
STEEP = (
    *("objective.loss=relativistic", "objective.r1_weight=0.5", "objective.discriminator.lr=1e-3"),
    "train.optim.lr=3e-4",
)
"""Where one step decides everything, the papers' games forget modes on points: all go to one of
`ring`. Against real logits and with a steep penalty more are kept."""
WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("diff-instruct", "disback", "dmd2", "f-distill", "sid", "twinflow", "uni-instruct"),
        ONE_PATH,
    ),
    "add": (*STEEP, "objective.distillation_weight=0.02"),
    "backward-distill": ("objective.solver_steps=32",),
    "ctm": ("objective.intervals=64", "train.steps=3600"),
    "embedding": (*STEEP, "embedding.weight=10", "train.steps=2500"),
    "lightning": (
        *(*STEEP, "objective.r1_weight=0.1", "objective.regressed=3", "objective.alone_share=0"),
        "train.steps=6000",
    ),
    "meanflow": ("train.steps=6000",),
    "pi-flow": ("train.steps=6000",),
    "progressive": ("objective.stages=6", "train.steps=6000"),
    "tract": ("objective.segments=[32,1]",),
    "ufogen": STEEP,
}
"""What a recipe needs in one step besides."""
REGRESSIONS = ("pretraining_steps", "regression_weight")
"""Settings of a method's regression on the teacher's paths, before and beside its own loss."""


def without_regression(method: str) -> tuple[str, ...]:
    """Overrides of a recipe that take its regression away; none if it has none."""
    config = recipes.load(PREFIX + method).method_config()
    return tuple(f"objective.{key}=0" for key in REGRESSIONS if getattr(config, key, 0))


def cases_of(args: argparse.Namespace) -> list[Case]:
    """What the command asks for."""
    cases = []
    for method in args.methods:
        several = recipes.load(PREFIX + method).student.steps > 1
        for mixture in args.mixtures.split(","):
            folder = args.out / f"{method}-{Path(mixture).stem}"
            if not args.only_alone:
                cases.append(Case(method, mixture, tuple(args.words), folder, args.again))
            if args.one_step and several and method in ONE_STEP:
                words = (*WORDS.get(method, ()), *args.words, "student.steps=1")
                one = folder.with_name(f"{folder.name}-1")
                cases.append(Case(method, mixture, words, one, args.again))
            if (args.alone or args.only_alone) and (gone := without_regression(method)):
                place = folder.with_name(f"{folder.name}-alone")
                words = (*args.words, *gone)
                cases.append(Case(method, mixture, words, place, args.again, alone=True))
    return cases


def stands_alone(recipe: Recipe) -> bool:
    """Whether it needs no student, and aims at a mixture without classes (see guided.py)."""
    return not (students_of(recipe) or recipe.reward) and recipe.teacher.guidance == 1


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """What the command says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [n.removeprefix(PREFIX) for n in recipes.shipped() if n.startswith(PREFIX)]
    # What needs a student is run when asked for, once there is one.
    alone = [n for n in known if stands_alone(recipes.load(PREFIX + n))]
    parser.add_argument(
        "methods",
        nargs="*",
        default=alone,
        type=lambda name: name.removeprefix(PREFIX),
        metavar="METHOD",
        help=f"of {', '.join(known)}; by default all but "
        f"{', '.join(sorted({*known} - {*alone}))}, which need a student or a reward, or are "
        "for classes",
    )
    parser.add_argument("--mixtures", default=MIXTURES, help=f"by default {MIXTURES}")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--one-step", action="store_true", help="also in one, where claimed")
    parser.add_argument("--alone", action="store_true", help="also without regression")
    which.add_argument("--only-alone", action="store_true", help="only without regression")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument(
        "--set",
        dest="words",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of every recipe; give such trials an --out of their own",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    args = parser.parse_args(words)
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: at least 1")
    for name in set(args.methods) - set(known):
        parser.error(f"no recipe {PREFIX}{name}; there are {', '.join(known)}")
    for mixture in args.mixtures.split(","):
        if not mixture:
            parser.error(f"--mixtures {args.mixtures!r}: an empty name")
        try:
            Mixture.load(mixture)
        except ValueError as error:
            parser.error(str(error))
    names = [Path(mixture).stem for mixture in args.mixtures.split(",")]
    if len({*names}) < len(names) or len({*args.methods}) < len(args.methods):
        parser.error("a method or the name of a mixture is there twice")
    for method in args.methods if args.words else ():
        try:
            recipes.load(PREFIX + method, args.words)
        except ValueError as error:
            parser.error(f"{PREFIX}{method}: {error}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out}: not a folder")
    return args


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """By goal, how many rows hold and which do not."""
    yield f"{sum(not row.missed() for row in rows)} of {len(rows)} runs reach every goal"
    for goal in ("floors", "within", "smallest", "seconds", "path"):
        asked = [row for row in rows if goal in row.misses()]
        missing = [
            f"{row.method}{' alone' * row.alone} {Path(row.mixture).stem} {row.steps}"
            for row in asked
            if row.misses()[goal]
        ]
        names = f"; not {', '.join(missing)}" if missing else ""
        if asked:
            yield f"{goal:8} {len(asked) - len(missing)} of {len(asked)}{names}"


def main(words: Sequence[str] | None = None) -> None:
    """Print the table, a line as soon as it is there."""
    args = arguments(words)
    cases = cases_of(args)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    args.out.mkdir(parents=True, exist_ok=True)
    print("  ".join(HEADINGS), flush=True)
    rows: dict[Case, Row] = {}
    with contextlib.closing(spread(cases, args.jobs)) as answers:
        for case, row in answers:
            if isinstance(row, str):
                print(f"{case.folder.name} failed: {row}", flush=True)
                continue
            print(row.text(), flush=True)
            rows[case] = row
            # In the order of the cases, whichever came first.
            there = [rows[case] for case in cases if case in rows]
            data = [{**asdict(row), "missed": row.missed()} for row in there]
            write_text(args.out / "methods.json", json.dumps(data, indent=1))
    for line in summary(list(rows.values())):
        print(line)
    failed = len(cases) - len(rows)
    if failed:
        sys.exit(f"{failed} of {len(cases)} runs failed")


if __name__ == "__main__":
    # So that the workers end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)

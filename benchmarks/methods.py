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

Each of the --jobs processes loads the library once and makes run after run, so seconds are those
from the loaded library to the student; other work beside does not count. Fits of the closed-form
teacher, which students start from, are equal for a mixture and seed: a process makes each once,
and its seconds count in every run.

A run that is there already, of the same recipe, mixture and code of `edgedistill`, is not
repeated, and keeps its figures and the seconds it took; --again repeats it. Figures go to
OUT/methods.json as they come.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import importlib
import inspect
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from exact_limits import exact_figures, least_distance

import edgedistill
from edgedistill import assets, recipes
from edgedistill.common.files import read_json, write_json, write_text
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.solvers import solve, time_grid
from edgedistill.evaluation.planar import planar_figures
from edgedistill.recipes.schema import Recipe
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.training.trainer import Interrupted

MIXTURES = "ring,grid,clusters"
PREFIX = "mixture-"
GOALS = {False: (2.0, 0.85, 0.60), True: (2.0, 0.70, 0.40)}
"""Floors, share within 3 sigma, smallest mode; in several steps, and in one."""
SECONDS = 90
SEARCHES, SLACK = ("oss",), 0.05
"""Methods whose goal is the least distance from the path, and by how much they may miss it."""
SAMPLES, PATHS = 10_000, 2_000
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
KEPT = "methods-row.json"
"""In a run dir: its row, and the key that it holds for."""


@dataclass(frozen=True)
class Case:
    """What to run: a method on a mixture."""

    method: str
    mixture: str
    words: tuple[str, ...]
    """Overrides of the recipe."""
    folder: Path
    again: bool
    alone: bool = False
    """Whether it has no regression that its recipe has."""

    def recipe(self) -> Recipe:
        """As it resolves."""
        return recipes.load(PREFIX + self.method, [f"teacher.path={self.mixture}", *self.words])


@dataclass(frozen=True)
class Row:
    """Figures of one run."""

    method: str
    mixture: str
    steps: int
    w2: float
    floors: float
    within: float
    smallest: float
    ode: float | None
    seconds: float
    lines: int
    alone: bool = False
    exact: Sequence[float] | None = None
    """Floors, share within 3 sigma and smallest mode with exact functions for networks."""

    def misses(self) -> dict[str, bool]:
        """Each goal, and whether this run misses it."""
        if self.method in SEARCHES:
            least = least_distance(self.mixture, self.steps)
            return {"path": self.ode is None or self.ode > least * (1 + SLACK)}
        floors, within, smallest = GOALS[self.steps == 1]
        return {
            "floors": self.floors > floors,
            "within": self.within < within,
            "smallest": self.smallest < smallest,
            "seconds": self.seconds > SECONDS,
        }

    def missed(self) -> list[str]:
        """Goals that this run misses."""
        return [name for name, miss in self.misses().items() if miss]

    def text(self) -> str:
        """As in the table."""
        ode = "-" if self.ode is None else f"{self.ode:.3f}"
        name = f"{self.method}, alone" if self.alone else self.method
        return (
            f"{name:20} {Path(self.mixture).stem:10} {self.steps:5} {self.w2:7.4f} "
            f"{self.floors:6.2f} {self.within:6.3f} {self.smallest:8.3f} {ode:>8} "
            f"{self.seconds:4.0f} {self.lines:5}  {', '.join(self.missed())}{self._exact()}"
        )

    def _exact(self) -> str:
        if not self.exact:
            return ""
        floors, within, smallest = self.exact
        return f"  (exact {floors:.2f} {within:.3f} {smallest:.3f})"


def digest(files: Iterable[Path], text: str = "") -> str:
    """Of files with their names, and a text."""
    found = hashlib.sha256(text.encode())
    for file in sorted(files):
        found.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return found.hexdigest()


def code() -> str:
    """Of the project as it is on disk."""
    return digest(Path(edgedistill.__file__).parent.rglob("*.py"))


CODE = code()
"""Of the project as this process has loaded it."""


def students_of(recipe: Recipe) -> list[Path]:
    """Folders of the students that it starts or learns from."""
    named = recipe.student.init, recipe.method().wants_knowledge(recipe.method_config())
    return [Path(folder) for folder in named if folder]


def key_of(recipe: Recipe) -> str:
    """What a run of the recipe depends on."""
    mixture = Path(recipe.teacher.path)
    if not mixture.is_dir():
        mixture = assets.find("mixtures", recipe.teacher.path)
    folders = (mixture, *students_of(recipe))
    files = [mixture, *(file for folder in folders for file in folder.rglob("*"))]
    return digest(filter(Path.is_file, files), CODE + recipes.dump(recipe))


class Fits:
    """What students start from, equal for a mixture and seed: made once, then copied."""

    def __init__(self) -> None:
        self.spared = 0.0
        """Seconds that copies would have taken."""
        self._made: dict[bytes, tuple[Denoiser, float]] = {}

    def share(self) -> None:
        """From now on, in this process."""
        alone = Mixture.spawn

        def spawn(mixture: Mixture, generator: torch.Generator | None = None) -> Denoiser:
            if generator is None:  # no fit
                return alone(mixture)
            numbers = (mixture.weights, mixture.means, mixture.scales, generator.get_state())
            key = b"".join(n.numpy().tobytes() for n in numbers)
            if key in self._made:
                self.spared += self._made[key][1]
            else:
                start = time.process_time()
                fitted = alone(mixture, generator)
                self._made[key] = fitted, time.process_time() - start
            return copy.deepcopy(self._made[key][0])

        Mixture.spawn = spawn


FITS = Fits()


def measure(case: Case) -> Row:
    """The row of a run that is there, or of a new one."""
    recipe = case.recipe()
    key = key_of(recipe)
    row = None if case.again else kept(case.folder, key)
    if row is None:
        with torch.random.fork_rng(devices=[]):  # the next run begins as in a new process
            row = figures(case, distil(recipe, case.folder))
        if code() == CODE:  # else nobody knows which code it was
            write_json(case.folder / KEPT, {"key": key, "row": asdict(row)})
    return row


def kept(folder: Path, key: str) -> Row | None:
    """The row in a run dir, if it holds for `key`."""
    try:
        data = read_json(folder / KEPT)
        return Row(**data["row"]) if data["key"] == key else None
    except (ValueError, KeyError, TypeError):  # none, or of another version of this file
        return None


def distil(recipe: Recipe, folder: Path) -> float:
    """Make a student as `edgedistill distill` does; returns the seconds it took."""
    shutil.rmtree(folder, ignore_errors=True)
    spared, start = FITS.spared, time.process_time()
    # `runs` has the link to the latest run, which outside of OUT stays the user's own.
    run = open_run(recipe, str(folder), False, runs=folder.parent)
    run.train(lambda step, figures: None)
    return time.process_time() - start + FITS.spared - spared


def figures(case: Case, seconds: float) -> Row:
    """Look at the student."""
    student = load_student(case.folder / "student")
    assert isinstance(student.teacher, Mixture)
    generator = torch.Generator().manual_seed(1234)
    noise = student.table.draw((SAMPLES, *student.teacher.sample_shape), generator)
    samples = student.sample({}, noise)
    found = planar_figures(samples, student.teacher, generator)
    ode = None
    if student.table.draws == 1:
        grid = time_grid(student.teacher.denoiser.schedule, 500)
        exact = solve(student.teacher.denoiser, noise[0][:PATHS], grid, {}, "heun")
        ode = (samples[:PATHS] - exact).square().sum(1).mean().sqrt().item()
    return Row(
        method=case.method,
        mixture=case.mixture,
        steps=len(student.table.rows),
        w2=found["sliced_w2"],
        floors=found["w2_ratio"],
        within=found["within_3_sigma"],
        smallest=found["smallest_mode"],
        ode=ode,
        seconds=seconds,
        lines=lines(PREFIX + case.method),
        alone=case.alone,
        exact=exact_figures(case.method, case.mixture, len(student.table.rows)),
    )


def without_regression(method: str) -> tuple[str, ...]:
    """Overrides of a recipe that take its regression away; none if it has none."""
    config = recipes.load(PREFIX + method).method_config()
    return tuple(f"objective.{key}=0" for key in REGRESSIONS if getattr(config, key, 0))


def lines(recipe: str) -> int:
    """Lines of the file of a recipe's method."""
    module = importlib.import_module(recipes.load(recipe).method().__module__)
    return len(inspect.getsource(module).splitlines())


def work(line: Connection) -> None:
    """A worker: for each case that comes along the line its row, or what went wrong."""
    torch.set_num_threads(1)
    FITS.share()
    # What is suppressed says that the benchmark is over.
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt, Interrupted):
        while True:
            case = line.recv()
            try:
                line.send(measure(case))
            except Interrupted:
                raise
            except Exception as error:
                line.send((str(error).strip() or type(error).__name__).splitlines()[-1])


class Worker:
    """A process of its own that `work`s."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self) -> Row | str | None:
        """What came along the line; None if the process has died."""
        try:
            answer: Row | str = self.line.recv()
        except (EOFError, OSError):
            self.end()
            return None
        return answer

    def end(self) -> None:
        """Wait until there is no process."""
        self.line.close()
        self.process.terminate()
        self.process.join()


def spread(cases: Sequence[Case], jobs: int) -> Iterator[tuple[Case, Row | str]]:
    """Each case and its row, or what went wrong, as they come from so many workers."""
    waiting, idle = deque(cases), list[Worker]()
    busy: dict[Connection, tuple[Worker, Case]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                worker = idle.pop() if idle else Worker()
                busy[worker.line] = worker, waiting.popleft()
                with contextlib.suppress(OSError):  # it has died, which the line will say
                    worker.line.send(busy[worker.line][1])
            for line in wait(list(busy)):
                worker, case = busy.pop(line)
                answer = worker.answer()
                if answer is None:  # another process will take its place
                    answer = f"its process died with exit code {worker.process.exitcode}"
                else:
                    idle.append(worker)
                yield case, answer
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            worker.end()


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
    """Whether it needs no student, and is for mixtures without classes (see guided.py)."""
    return not students_of(recipe) and recipe.teacher.guidance == 1


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
        f"{', '.join(sorted({*known} - {*alone}))}, which need a student or are for classes",
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

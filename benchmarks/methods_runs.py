"""Runs of methods on planar mixtures, one core each, and what is measured of them.

Each process loads the library once and makes run after run, so seconds are those from the loaded
library to the student; other work beside does not count. Fits of the closed-form teacher, which
students start from, are equal for a mixture and seed: a process makes each once, and its seconds
count in every run.

A run that is there already, of the same recipe, mixture and code of `edgedistill`, is not
repeated, and keeps its figures and the seconds it took.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import inspect
import multiprocessing
import shutil
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from unittest.mock import patch

import torch
from exact_limits import exact_figures, least_distance
from one_student import open_one

import edgedistill
from edgedistill import assets, recipes
from edgedistill.common.files import read_json, write_json
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.solvers import solve, time_grid
from edgedistill.evaluation.planar import planar_figures
from edgedistill.recipes.schema import Recipe
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.training.trainer import Interrupted

PREFIX = "mixture-"
GOALS = {False: (2.0, 0.85, 0.60), True: (2.0, 0.70, 0.40)}
"""Floors, share within 3 sigma, smallest mode; in several steps, and in one."""
SECONDS = 90
SEARCHES, SLACK = ("oss",), 0.05
"""Methods whose goal is the least distance from the path, and by how much they may miss it."""
SAMPLES, PATHS = 10_000, 2_000
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

        patch.object(Mixture, "spawn", spawn).start()


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
    run = open_one(recipe, folder, runs=folder.parent)
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


def spread(cases: Sequence[Case], jobs: int) -> Generator[tuple[Case, Row | str], None, None]:
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
            answering = wait(list(busy))
            for line in [line for line in busy if line in answering]:
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

"""A run of several students, each trained on its part of the conditions by the same recipe.

RUN/students/students.json   which student draws which conditions
RUN/students/0, 1, ...       the students
RUN/parts/0, 1, ...          metrics, samples and checkpoints of each
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgedistill.common.files import WriteError, read_json, write_json
from edgedistill.common.pictures import save_samples
from edgedistill.data import find_captions
from edgedistill.data.latents import find_pictures
from edgedistill.data.paths import captions_of
from edgedistill.recipes.schema import Recipe
from edgedistill.runs.run import Run
from edgedistill.students.group import Students, complete
from edgedistill.students.routing import Part, divide, route
from edgedistill.teachers import Teacher, load_teacher
from edgedistill.teachers.latents import Captioned
from edgedistill.training.trainer import engine
from edgedistill_runtime.routes import ROUTES, Routes

__all__ = ["Group"]

log = logging.getLogger(__name__)


class Group:
    """The students of a recipe with several parts.

    Args:
        recipe: The recipe.
        folder: The run dir; must exist.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.place = folder / "students"
        accelerator = engine(recipe.train.precision)
        with accelerator.main_process_first():  # the main one writes first
            kept = (self.place / ROUTES).is_file()
            self.routes, shares = self._kept() if kept else self._divided()
        self.left = [i for i in recipe.parts.trained if not self._finished(i)]
        # Opening the first run shows errors in the request while nothing is written.
        self._next = self._run(self.left[0]) if self.left else None
        if accelerator.is_main_process and not kept:
            write_json(self.place / ROUTES, self.routes.to_json())
        log.info(shares)

    def runs(self) -> Iterator[Run]:
        """Yield the remaining runs, opened one after the other, each trained by the caller."""
        for index in self.left:
            run, self._next = self._next or self._run(index), None
            yield run
            if run.trainer.accelerator.is_main_process and complete(self.place):
                self._preview(run.teacher.preview_prompts())
            del run  # before the next one is opened

    def _run(self, index: int) -> Run:
        parts = self.recipe.parts.model_copy(update={"only": index})
        folder, part = self.folder / "parts" / str(index), Part(index, self.routes, self.folder)
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            recipe = self.recipe.model_copy(update={"parts": parts})
            return Run(recipe, folder, part)
        except ValueError as error:
            if made and not isinstance(error, WriteError):
                shutil.rmtree(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()
            raise

    def _finished(self, index: int) -> bool:
        """Whether a student exists that was trained for the recipe's current number of steps."""
        file = self.place / str(index) / "student.json"
        if not file.is_file():
            return False
        steps = read_json(file).get("recipe", {}).get("train", {}).get("steps")
        return bool(steps == self.recipe.train.steps)

    def _kept(self) -> tuple[Routes, str]:
        """Return the stored division, and a line about it."""
        routes, count = Routes.read(self.place), self.recipe.parts.count
        if len(routes.parts) != count:
            there = len(routes.parts)
            raise ValueError(f"parts.count={count}: {self.place} is of {there} students")
        return routes, f"conditions divided as in {self.place}"

    def _divided(self) -> tuple[Routes, str]:
        """Make a new division, and a line about it."""
        section, count = self.recipe.teacher, self.recipe.parts.count
        teacher = load_teacher(section.family, section.path, section.config, section.loras)
        teacher.to(engine(self.recipe.train.precision).device)
        captions = self._captions(teacher)
        routes = divide(teacher, captions, count, self.recipe.train.seed)
        owners = route(routes, teacher, captions)
        for index in self.recipe.parts.trained:
            Part(index, routes, self.folder).check(owners)
        shares = ", ".join(str(owners.count(index)) for index in range(count))
        return routes, f"captions of {count} students: {shares}"

    def _captions(self, teacher: Teacher) -> list[str]:
        """Return the captions of the run's data, as `Run` finds it."""
        recipe, data = self.recipe, self.recipe.data
        if not teacher.prompts:
            return []  # `divide` refuses this
        if data.pictures is not None:
            cache = Path(data.cache or self.folder / "data" / "pictures")
            keep = bool(recipe.method().wants_originals(recipe.method_config()))
            found = find_pictures(
                teacher, data.pictures, cache, data.caption, self.folder, keep=keep
            )
            return found.open().captions
        if recipe.method().needs_paths:
            return captions_of(teacher, data.prompts, data.caption)
        captions = find_captions(teacher, data.prompts, data.samples, data.caption)
        own = teacher.source()
        if not captions and isinstance(own, Captioned):
            return own.captions
        if not captions:
            raise ValueError(
                f"parts.count={recipe.parts.count}: the data of teacher {teacher.name!r} has no "
                "captions to divide; name some with data.prompts"
            )
        return captions

    def _preview(self, prompts: list[str]) -> None:
        """Draw prompts, each by its own student."""
        students = Students(self.place)
        noise = students.noise(len(prompts), 0)
        cond = students.teacher.encode(prompts)
        drawn = students.teacher.decode(students.sample(cond, noise))
        save_samples(self.folder / "samples" / "students.png", drawn, None)

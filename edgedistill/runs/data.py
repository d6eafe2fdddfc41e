"""A run's clean data: its own pictures, stored paths, or the teacher's data or samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from edgedistill.common.logs import WAITS
from edgedistill.common.progress import late_bar
from edgedistill.data import find_captions, open_source
from edgedistill.data.latents import Pictures, find_pictures
from edgedistill.data.paths import Paths, captions_of, make_paths, open_paths, spec_of
from edgedistill.recipes.schema import Recipe
from edgedistill.students.routing import Part
from edgedistill.teachers.base import DataSource, Teacher
from edgedistill.teachers.latents import Captioned

__all__ = ["RunData"]

log = logging.getLogger(__name__)


class RunData:
    """Data sources of a recipe, checked before anything is encoded or drawn.

    Args:
        recipe: The recipe.
        teacher: The teacher that will learn from or make the data.
        folder: The run dir.
        part: The student's part of the conditions, if it is one of several.

    Raises:
        ValueError: If the recipe's data is missing or unusable; names the key.
    """

    def __init__(self, recipe: Recipe, teacher: Teacher, folder: Path, part: Part | None) -> None:
        self.recipe, self.teacher, self.folder, self.part = recipe, teacher, folder, part
        data, self._pictures = recipe.data, self._find_pictures()
        captions: list[str] = []
        if data.paths is None and self._pictures is None:
            captions = find_captions(teacher, data.prompts, data.samples, data.caption)
        self._captions = self._own(captions)

    def paths(self, times: Tensor) -> Paths | None:
        """Open the teacher's paths at the student's times, for methods that need them.

        They are those of the recipe, or are made in the run dir.
        """
        recipe, teacher = self.recipe, self.teacher
        if not recipe.method().needs_paths:
            return None
        self._vary(None)
        section = recipe.teacher
        captions = self._own(captions_of(teacher, recipe.data.prompts, recipe.data.caption))
        spec = spec_of(
            teacher,
            captions,
            guidance=section.guidance,
            solver=section.solver,
            steps=section.steps,
            times=times,
            seed=recipe.train.seed,
        )
        folder = Path(recipe.data.paths or self.folder / "data" / "paths")
        if recipe.data.paths is None:
            with self._making() as made:
                make_paths(folder, teacher, spec, captions, self._samples, made)
        return open_paths(folder, teacher, spec, times)

    def source(self) -> DataSource:
        """Open the clean data of the student's conditions."""
        recipe, section = self.recipe, self.recipe.teacher
        if self._pictures is not None:
            return self._shared(self._pictures.open())
        with self._making() as made:
            source = open_source(
                self.teacher,
                self._captions,
                section.guidance,
                section.steps,
                recipe.train.seed,
                self.folder,
                made,
            )
        return self._shared(source)

    @contextmanager
    def _making(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that shows how many of the teacher's samples are made."""
        total = len(self._captions) or self._samples
        with late_bar("teacher samples", total) as update:

            def made(count: int) -> None:
                if count == 0:
                    # Messages that are held back come before the bar.
                    log.info(f"the teacher makes {total} samples", extra=WAITS)
                update(count)

            yield made

    @property
    def wants_originals(self) -> tuple[str, str] | None:
        """Return the method's choice that needs the pictures themselves, and one that does not."""
        return self.recipe.method().wants_originals(self.recipe.method_config())

    def _find_pictures(self) -> Pictures | None:
        """Find the recipe's own pictures, if it names any."""
        data, asked = self.recipe.data, self.wants_originals
        if data.pictures is None:
            if asked:
                self._check_originals(*asked)
            return None
        home = self.part.home if self.part else self.folder
        cache = Path(data.cache or home / "data" / "pictures")
        return find_pictures(
            self.teacher, data.pictures, cache, data.caption, home, keep=bool(asked)
        )

    def _check_originals(self, choice: str, other: str) -> None:
        """Raise a ValueError if the teacher's own data is unsuitable, or has no pictures."""
        own = self.teacher.source() if self.recipe.data.prompts is None else None
        if own is None or own.originals(1, torch.Generator()) is None:
            raise ValueError(
                f"objective.{choice}: the run's clean data come without the pictures they were "
                f"encoded from; name some with data.pictures, or choose {other}"
            )

    @property
    def _samples(self) -> int:
        """Return the number of samples the teacher makes; several students share it."""
        return -(-self.recipe.data.samples // self.recipe.parts.count)

    def _own(self, captions: list[str]) -> list[str]:
        """Return those captions that the student learns."""
        if self.part is None or not captions:
            return captions
        return [captions[row] for row in self.part.rows(self.teacher, captions)]

    def _shared(self, source: DataSource) -> DataSource:
        if self.part and isinstance(source, Captioned):
            source.only(self.part.rows(self.teacher, source.captions))
        self._vary(source)
        return source

    def _vary(self, source: DataSource | None) -> None:
        """Let captions change from draw to draw if the recipe asks so; say if there is but one."""
        if not self.recipe.data.caption_variants:
            return
        if not isinstance(source, Captioned) or not source.vary():
            log.info(
                "data.caption_variants=true changes nothing: this run's data has one caption for "
                "each sample"
            )

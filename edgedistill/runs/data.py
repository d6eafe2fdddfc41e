"""A run's clean data: its own pictures, stored paths, or the teacher's data or samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from edgedistill.data import find_captions, open_source
from edgedistill.data.latents import Pictures, find_pictures
from edgedistill.data.paths import Paths, captions_of, make_paths, open_paths, spec_of
from edgedistill.recipes.schema import Recipe
from edgedistill.students.routing import Part
from edgedistill.teachers.base import DataSource, Teacher
from edgedistill.teachers.latents import Captioned

__all__ = ["RunData"]


class RunData:
    """What a recipe says of its data, checked before anything is encoded or drawn.

    Args:
        recipe: Its choices.
        teacher: Whose data it is.
        folder: The run dir.
        part: The conditions that the student is for, if not for all.

    Raises:
        ValueError: If the recipe's data is not there, or cannot serve; names the key.
    """

    def __init__(self, recipe: Recipe, teacher: Teacher, folder: Path, part: Part | None) -> None:
        self.recipe, self.teacher, self.folder, self.part = recipe, teacher, folder, part
        data, self._pictures = recipe.data, self._find_pictures()
        captions: list[str] = []
        if data.paths is None and self._pictures is None:
            captions = find_captions(teacher, data.prompts, data.samples, data.caption)
        self._captions = self._own(captions)

    def paths(self, times: Tensor, say: Callable[[str], None]) -> Paths | None:
        """The teacher's paths at the student's times, for methods that need them.

        They are the recipe's, or made into the run dir.
        """
        recipe, teacher = self.recipe, self.teacher
        if not recipe.method().needs_paths:
            return None
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
            made = self._made(say)
            make_paths(folder, teacher, spec, captions, self._samples, say, made)
        return open_paths(folder, teacher, spec, times)

    def source(self, say: Callable[[str], None]) -> DataSource:
        """Clean data of the conditions that the student is for."""
        recipe, section = self.recipe, self.recipe.teacher
        if self._pictures is not None:
            return self._shared(self._pictures.open(say))
        return self._shared(
            open_source(
                self.teacher,
                self._captions,
                section.guidance,
                section.steps,
                recipe.train.seed,
                self.folder,
                self._made(say),
            )
        )

    def _made(self, say: Callable[[str], None]) -> Callable[[int], None]:
        total = len(self._captions) or self._samples
        return lambda made: say(f"teacher samples {made}/{total}")

    @property
    def wants_originals(self) -> tuple[str, str] | None:
        """The method's choice that needs the pictures themselves and one that does not."""
        return self.recipe.method().wants_originals(self.recipe.method_config())

    def _find_pictures(self) -> Pictures | None:
        """The recipe's own pictures, if it names any."""
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
        """ValueError if the teacher's own data does not serve, or has no pictures."""
        own = self.teacher.source() if self.recipe.data.prompts is None else None
        if own is None or own.originals(1, torch.Generator()) is None:
            raise ValueError(
                f"objective.{choice}: the run's clean data come without the pictures they were "
                f"encoded from; name some with data.pictures, or choose {other}"
            )

    @property
    def _samples(self) -> int:
        """Samples the teacher makes: of several students each has its share."""
        return -(-self.recipe.data.samples // self.recipe.parts.count)

    def _own(self, captions: list[str]) -> list[str]:
        """Those that the student is for."""
        if self.part is None or not captions:
            return captions
        return [captions[row] for row in self.part.rows(self.teacher, captions)]

    def _shared(self, source: DataSource) -> DataSource:
        if self.part and isinstance(source, Captioned):
            source.only(self.part.rows(self.teacher, source.captions))
        return source

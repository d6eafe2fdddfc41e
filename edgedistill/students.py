"""Several students behind one call: each draws the conditions it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from edgedistill.denoiser import Condition
from edgedistill.routing import first
from edgedistill.sampling import StepTable
from edgedistill.student import Student, StudentInfo, load_student
from edgedistill.teachers import Teacher

__all__ = ["Students", "complete", "group_of", "open_student"]


def group_of(path: str | Path) -> Path | None:
    """The folder of a group of students: `path` itself, or in the run dir at `path`."""
    from edgedistill_runtime.routes import ROUTES

    for folder in (Path(path), Path(path) / "students"):
        if (folder / ROUTES).is_file() and not (folder / "0" / "manifest.json").is_file():
            return folder
    return None


def complete(folder: Path) -> bool:
    """Whether all students of a group are there."""
    from edgedistill_runtime.routes import Routes

    count = len(Routes.read(folder).parts)
    return all((folder / str(i) / "student.json").is_file() for i in range(count))


def open_student(path: str | Path) -> Student | Students:
    """A student, or a group of them, by its folder or run dir.

    Raises:
        ValueError: As `load_student` and `Students` say.
    """
    folder = group_of(path)
    return load_student(path) if folder is None else Students(folder)


class Students:
    """A group of students, of which each is loaded when it is first needed.

    Args:
        path: The folder with students.json.

    Attributes:
        path: The folder.
        routes: Whose conditions are whose.

    Raises:
        ValueError: If students.json is wrong, or a student is not there yet; names it.
    """

    def __init__(self, path: Path) -> None:
        from edgedistill_runtime.routes import Routes

        self.path, self.routes = path, Routes.read(path)
        for index in range(len(self.routes.parts)):
            if not (self.place(index) / "student.json").is_file():
                raise ValueError(
                    f"{self.place(index)}: no student yet; train it with parts.only={index} "
                    "--resume, or finish the run"
                )
        self._loaded: dict[int, Student] = {}

    def place(self, index: int) -> Path:
        """The folder of a student."""
        return self.path / str(index)

    def __getitem__(self, index: int) -> Student:
        if index not in self._loaded:
            self._loaded[index] = load_student(self.place(index))
        return self._loaded[index]

    @property
    def info(self) -> StudentInfo:
        """The first one's."""
        return self[0].info

    @property
    def teacher(self) -> Teacher:
        """The first one's: all encode and decode alike."""
        return self[0].teacher

    @cached_property
    def table(self) -> StepTable:
        """The step table that draws most noise."""
        tables = [self[index].table for index in range(len(self.routes.parts))]
        return max(tables, key=lambda table: (len(table.rows), table.draws))

    def noise(self, count: int, seed: int) -> list[Tensor]:
        """Noise for `count` samples."""
        generator = torch.Generator().manual_seed(seed)
        return list(self.table.draw((count, *self.teacher.sample_shape), generator))

    @torch.no_grad()
    def sample(self, cond: Condition, noise: Sequence[Tensor]) -> Tensor:
        """x0 (N, ...) of `table.draws` noise tensors (N, ...), each row by its student."""
        owner = torch.from_numpy(self.routes.of(first(cond)))
        x0 = torch.empty_like(noise[0])
        for index in sorted(set(owner.tolist())):
            rows, student = owner == index, self[index]
            given = [tensor[rows] for tensor in noise[: student.table.draws]]
            x0[rows] = student.sample({name: c[rows] for name, c in cond.items()}, given)
        return x0

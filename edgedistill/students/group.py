"""A group of students behind one call: each draws the conditions it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition
from edgedistill.students.folder import Student, load_student
from edgedistill.students.routing import first
from edgedistill_runtime.hub import local_folder
from edgedistill_runtime.routes import ROUTES, Routes

__all__ = ["Students", "complete", "group_of", "open_student"]


def group_of(path: str | Path) -> Path | None:
    """Return the folder of a group of students: `path`, or the group in the run dir `path`."""
    whole = local_folder(path)
    for folder in (whole, whole / "students"):
        if (folder / ROUTES).is_file() and not (folder / "0" / "manifest.json").is_file():
            return folder
    return None


def complete(folder: Path) -> bool:
    """Whether all students of a group exist."""
    count = len(Routes.read(folder).parts)
    return all((folder / str(i) / "student.json").is_file() for i in range(count))


def open_student(path: str | Path) -> Student | Students:
    """Open a student, or a group of them, by its folder or run dir.

    Raises:
        ValueError: As in `load_student` and `Students`.
    """
    folder = group_of(path)
    return load_student(path) if folder is None else Students(folder)


class Students:
    """A loaded group of students.

    Args:
        path: The folder with students.json.

    Attributes:
        path: The folder.
        routes: The routing of conditions to students.
        students: All students.
        info: Info of the first student.
        teacher: Teacher of the first student; all encode and decode alike.
        table: The step table that needs most noise.

    Raises:
        ValueError: If students.json is wrong, or a student is not there yet; names it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.routes = path, Routes.read(path)
        places = [path / str(index) for index in range(len(self.routes.parts))]
        for index, place in enumerate(places):
            if not (place / "student.json").is_file():
                raise ValueError(
                    f"{place}: no student yet; train it with parts.only={index} --resume, or "
                    "finish the run"
                )
        self.students = [load_student(place) for place in places]
        self.info, self.teacher = self.students[0].info, self.students[0].teacher
        tables = [student.table for student in self.students]
        self.table = max(tables, key=lambda table: (table.draws, len(table.rows)))

    def noise(self, count: int, seed: int) -> list[Tensor]:
        """Draw noise for `count` samples."""
        generator = torch.Generator().manual_seed(seed)
        return list(self.table.draw((count, *self.teacher.sample_shape), generator))

    @torch.no_grad()
    def sample(self, cond: Condition, noise: Sequence[Tensor]) -> Tensor:
        """Sample x0 (N, ...) from `table.draws` noise tensors (N, ...), rows by their student."""
        owner = torch.from_numpy(self.routes.of(first(cond)))
        x0 = noise[-1].new_empty(len(owner), *self.teacher.sample_shape)
        for index in sorted(set(owner.tolist())):
            rows, student = owner == index, self.students[index]
            given = [tensor[rows] for tensor in noise[: student.table.draws]]
            x0[rows] = student.sample({name: c[rows] for name, c in cond.items()}, given)
        return x0

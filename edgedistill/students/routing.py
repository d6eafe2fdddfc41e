"""Routing: a teacher's conditions are divided among students once, before training.

Multi-student distillation, Song et al. 2024 (arXiv 2410.23274): each student is trained only on
its own part of the conditions. Classes are divided into consecutive ranges, prompts into clusters
of their embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition
from edgedistill.teachers import Teacher
from edgedistill.teachers.classes import NULL, ClassTeacher
from edgedistill_runtime.routes import Routes, pooled

__all__ = ["Part", "divide", "kmeans", "ranges", "route"]

RESTARTS, ROUNDS = 8, 100
"""Numbers of k-means: restarts, and most rounds of moving the centroids."""

PIECE = 64
"""Number of captions encoded at once; their tokens' states are large."""


@dataclass(frozen=True)
class Part:
    """The part of the conditions of one student.

    Attributes:
        index: Index of the student.
        routes: The routing of conditions to students.
        home: The run dir of all students.
    """

    index: int
    routes: Routes
    home: Path

    @property
    def place(self) -> Path:
        """Folder of the student."""
        return self.home / "students" / str(self.index)

    def rows(self, teacher: Teacher, captions: Sequence[str]) -> list[int]:
        """Return indices of a run's captions that are the student's; ValueError if none is."""
        owners = route(self.routes, teacher, captions)
        self.check(owners)
        return [row for row, owner in enumerate(owners) if owner == self.index]

    def check(self, owners: Sequence[int]) -> None:
        """Raise a ValueError if no caption of a run belongs to the student."""
        if self.index not in owners:
            raise ValueError(
                f"parts.count={len(self.routes.parts)}: none of the run's {len(owners)} captions "
                f"is student {self.index}'s"
            )

    def own(self, teacher: Teacher, captions: Sequence[str]) -> list[str]:
        """Return the captions that belong to the student, possibly none."""
        owners = route(self.routes, teacher, captions)
        return [c for c, owner in zip(captions, owners, strict=True) if owner == self.index]


def first(cond: Condition) -> NDArray[Any]:
    """Return the first output of a text encoder as an array."""
    found: NDArray[Any] = next(iter(cond.values())).detach().cpu().numpy()
    return found


def route(routes: Routes, teacher: Teacher, captions: Sequence[str]) -> list[int]:
    """Return the student of each caption; equal captions are encoded once."""
    different = list(dict.fromkeys(captions))
    owner: dict[str, int] = {}
    for start in range(0, len(different), PIECE):
        piece = different[start : start + PIECE]
        owner |= dict(zip(piece, routes.of(first(teacher.encode(piece))).tolist(), strict=True))
    return [owner[caption] for caption in captions]


def divide(teacher: Teacher, captions: Sequence[str], count: int, seed: int) -> Routes:
    """Divide a teacher's conditions among `count` students.

    Args:
        teacher: Teacher whose classes are divided into ranges, or else its prompts into clusters.
        captions: Captions of the run's data.
        count: Number of students.
        seed: Seed of the clustering.

    Raises:
        ValueError: If the teacher takes no conditions, or there are fewer conditions than
            students.
    """
    if not teacher.prompts:
        raise ValueError(
            f"parts.count={count}: teacher {teacher.name!r} takes no conditions to divide among "
            "students"
        )
    if isinstance(teacher, ClassTeacher):
        labels = sorted({label for name, label in teacher.classes.items() if name != NULL})
        owned = ranges(labels, count)
        null = teacher.classes.get(NULL)
        if null is not None:
            owned[-1].append(null)
        return Routes("label", tuple(tuple(map(float, own)) for own in owned))
    different = sorted(set(captions))
    if count > len(different):
        raise ValueError(
            f"parts.count={count}: only {len(different)} different captions to divide"
        )
    means = [
        torch.from_numpy(pooled(first(teacher.encode(different[start : start + PIECE]))))
        for start in range(0, len(different), PIECE)
    ]
    centroids = kmeans(torch.cat(means), count, torch.Generator().manual_seed(seed))
    return Routes("prompt", tuple(tuple(row) for row in centroids.tolist()))


def ranges(labels: Sequence[int], count: int) -> list[list[int]]:
    """Split labels, in order, into `count` consecutive ranges.

    The sizes of the ranges differ by at most one.
    """
    if count > len(labels):
        raise ValueError(f"parts.count={count}: only {len(labels)} classes to divide")
    ends = [i * len(labels) // count for i in range(count + 1)]
    return [list(labels[a:b]) for a, b in pairwise(ends)]


def kmeans(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return centroids (count, D) of points (N, D), each with a non-empty cluster.

    This is Lloyd's algorithm from k-means++ starts (Arthur & Vassilvitskii 2007); the best of
    several runs is taken.

    Raises:
        ValueError: If there are fewer different points than clusters.
    """
    points = points.double()
    different = len({tuple(row) for row in points.tolist()})
    if count > different:
        raise ValueError(f"parts.count={count}: only {different} different embeddings to divide")
    best, least = points[:count], float("inf")
    for _ in range(RESTARTS):
        centroids = _starts(points, count, generator)
        for _ in range(ROUNDS):
            gaps = _squares(points, centroids)
            moved = _means(points, gaps, centroids)
            if torch.equal(moved, centroids):
                break
            centroids = moved
        total = float(_squares(points, centroids).amin(1).sum())
        if total < least:
            best, least = centroids, total
    # Sort the centroids, so that their order does not depend on the start.
    return best[sorted(range(count), key=lambda i: best[i].tolist())]


def _squares(points: Tensor, centroids: Tensor) -> Tensor:
    """Return squared distances (N, K)."""
    return torch.stack([(points - centroid).square().sum(1) for centroid in centroids], 1)


def _starts(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose starts: the first at random, others in proportion to their squared distance."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(chosen) < count:
        gaps = _squares(points, points[chosen]).amin(1)
        chosen.append(int(torch.multinomial(gaps, 1, generator=generator)))
    return points[chosen]


def _means(points: Tensor, gaps: Tensor, centroids: Tensor) -> Tensor:
    """Return each cluster's mean; an empty one takes the point farthest from its own centroid."""
    owner, means = gaps.argmin(1), centroids.clone()
    for index in range(len(centroids)):
        mine = owner == index
        means[index] = points[mine].mean(0) if bool(mine.any()) else points[gaps.amin(1).argmax()]
    return means

"""Which student learns what: a teacher's conditions, divided once before training.

Multi-student distillation, Song et al. 2024 (arXiv 2410.23274): each student sees its own part of
the conditions alone. Classes are divided into consecutive ranges, prompts into clusters of their
embeddings.
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
"""Of k-means: how often it starts anew, and how many times it moves its centroids at the most."""

PIECE = 64
"""Captions encoded at once: their tokens' states are large."""


@dataclass(frozen=True)
class Part:
    """One student's share of the conditions.

    Attributes:
        index: Of the student.
        routes: Whose conditions are whose.
        home: The run dir of all of them.
    """

    index: int
    routes: Routes
    home: Path

    @property
    def place(self) -> Path:
        """Where the student goes."""
        return self.home / "students" / str(self.index)

    def rows(self, teacher: Teacher, captions: Sequence[str]) -> list[int]:
        """Which of a run's captions are the student's; ValueError if none is."""
        owners = route(self.routes, teacher, captions)
        self.check(owners)
        return [row for row, owner in enumerate(owners) if owner == self.index]

    def check(self, owners: Sequence[int]) -> None:
        """ValueError if the student is none of the owners of a run's captions."""
        if self.index not in owners:
            raise ValueError(
                f"parts.count={len(self.routes.parts)}: none of the run's {len(owners)} captions "
                f"is student {self.index}'s"
            )

    def own(self, teacher: Teacher, captions: Sequence[str]) -> list[str]:
        """Those of any captions that are the student's, maybe none."""
        owners = route(self.routes, teacher, captions)
        return [c for c, owner in zip(captions, owners, strict=True) if owner == self.index]


def first(cond: Condition) -> NDArray[Any]:
    """What a text encoder returns first."""
    found: NDArray[Any] = next(iter(cond.values())).detach().cpu().numpy()
    return found


def route(routes: Routes, teacher: Teacher, captions: Sequence[str]) -> list[int]:
    """The student of each caption; each different one is encoded once."""
    different = list(dict.fromkeys(captions))
    owner: dict[str, int] = {}
    for start in range(0, len(different), PIECE):
        piece = different[start : start + PIECE]
        owner |= dict(zip(piece, routes.of(first(teacher.encode(piece))).tolist(), strict=True))
    return [owner[caption] for caption in captions]


def divide(teacher: Teacher, captions: Sequence[str], count: int, seed: int) -> Routes:
    """Divide a teacher's conditions among `count` students.

    Args:
        teacher: Its classes are divided into ranges, else its prompts into clusters.
        captions: Those of the run's data.
        count: Students.
        seed: Of the clusters.

    Raises:
        ValueError: If the teacher takes no conditions, or there are fewer than students.
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
    """Labels in order, in `count` consecutive ranges whose sizes differ by one at the most."""
    if count > len(labels):
        raise ValueError(f"parts.count={count}: only {len(labels)} classes to divide")
    ends = [i * len(labels) // count for i in range(count + 1)]
    return [list(labels[a:b]) for a, b in pairwise(ends)]


def kmeans(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centroids (count, D) of points (N, D), none of an empty cluster.

    Lloyd's algorithm from k-means++ starts (Arthur & Vassilvitskii 2007), the best of several.

    Raises:
        ValueError: If fewer points than clusters are different.
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
    # In an order that does not depend on the start.
    return best[sorted(range(count), key=lambda i: best[i].tolist())]


def _squares(points: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances (N, K)."""
    return torch.stack([(points - centroid).square().sum(1) for centroid in centroids], 1)


def _starts(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The first at random, each further one in proportion to its squared distance."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(chosen) < count:
        gaps = _squares(points, points[chosen]).amin(1)
        chosen.append(int(torch.multinomial(gaps, 1, generator=generator)))
    return points[chosen]


def _means(points: Tensor, gaps: Tensor, centroids: Tensor) -> Tensor:
    """Of each cluster; an empty one takes the point that is farthest from its own centroid."""
    owner, means = gaps.argmin(1), centroids.clone()
    for index in range(len(centroids)):
        mine = owner == index
        means[index] = points[mine].mean(0) if bool(mine.any()) else points[gaps.amin(1).argmax()]
    return means

"""A prelude: in a run's first steps the student learns something else than the method's loss."""

from __future__ import annotations

from dataclasses import replace

from edgedistill.objectives.base import Batch, Losses, Objective, Player, Wrapper

__all__ = ["Prelude"]


class Prelude(Wrapper):
    """A method, preceded by steps in which its student learns a lesson.

    Args:
        method: The method that follows.
        lesson: The loss of the first steps, on the same student.
        first: Number of steps of the lesson.
    """

    name = "prelude"

    def __init__(self, method: Objective, lesson: Objective, first: int) -> None:
        super().__init__(method)
        self.lesson, self.first = lesson, first

    def players(self) -> list[Player]:
        return [self._later(player) for player in self.method.players()]

    def _later(self, player: Player) -> Player:
        start = player.start + self.first
        if player.name != "student":
            return replace(player, start=start)
        return replace(player, start=start, prelude=player.prelude + self.first)

    def started(self, step: int) -> None:
        if step < self.first:
            self.lesson.started(step)
        else:
            self.method.started(step - self.first)

    def search_step(self) -> int:
        return self.first + self.method.search_step()

    def loss(self, player: str, batch: Batch) -> Losses:
        if batch.step < self.first:
            return self.lesson.loss(player, batch)
        return self.method.loss(player, replace(batch, step=batch.step - self.first))

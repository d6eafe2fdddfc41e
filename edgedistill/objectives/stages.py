"""A run divided into equal stages, for methods whose teacher changes on the way."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stages"]


@dataclass(frozen=True)
class Stages:
    """`count` stages of `train_steps` steps; the later ones have the remainder.

    A stage is a function of the step alone, so that a resumed run is in the right one. Actions at
    the start of a stage belong in `Objective.started`, and must be repeatable, since a run may be
    resumed there.

    Raises:
        ValueError: If there are fewer steps than stages.
    """

    train_steps: int
    count: int

    def __post_init__(self) -> None:
        if self.train_steps < self.count:
            raise ValueError(f"train.steps={self.train_steps}: fewer than {self.count} stages")

    def at(self, step: int) -> int:
        """Return the stage of `step` (0, 1, ...): 0 .. count - 1."""
        return min(step * self.count // self.train_steps, self.count - 1)

    def begins(self, step: int) -> bool:
        """Whether a stage begins at `step`."""
        return step == 0 or self.at(step) != self.at(step - 1)

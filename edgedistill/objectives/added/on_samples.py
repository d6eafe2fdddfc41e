"""Base class of losses on samples of the student, which can be added to any method."""

from __future__ import annotations

from torch import Tensor

from edgedistill.diffusion.boundary import consistency_function
from edgedistill.objectives.base import Batch, Objective, Setup, Wrapper
from edgedistill.objectives.matching.rollout import AnySteps, Rollout

__all__ = ["Beside"]


class Beside(Wrapper):
    """A method with another loss on its student's samples.

    Args:
        section: Section of the recipe, for messages.
        method: The method.
        setup: Setup that the method was made from.

    Raises:
        ValueError: If the method trains no student that takes the sampler's steps.
    """

    def __init__(self, section: str, method: Objective, setup: Setup) -> None:
        if method.searches or method.own_coefficients or method.product != "student":
            raise ValueError(
                f"{section}: method {method.name!r} trains no student that takes the steps of "
                "student.sampler"
            )
        table = method.table()
        if table and table.grows:
            raise ValueError(
                f"{section}: the steps of method {method.name!r} grow; choose another"
            )
        if method.reuses:
            raise ValueError(
                f"{section}: steps of method {method.name!r} reuse deep blocks; choose another"
            )
        super().__init__(method)
        self.student, self.times = setup.student, setup.times
        self.rollout = Rollout(setup.student, setup.times, setup.sampler)
        if grids := method.step_times():
            each = [Rollout(setup.student, times, setup.sampler) for times in grids]
            self.rollout = AnySteps(self.rollout, each)

    def sample(self, batch: Batch) -> Tensor:
        """Return x0 (N, ...) at one of the student's own steps, with the gradient of that step.

        A student for several numbers of steps takes the steps of one of them.
        """
        sample, boundary = self.rollout(batch), self.method.boundary()
        if boundary is None:
            return sample.x0
        t = sample.t.to(sample.x0.device).expand(len(sample.x0))
        return consistency_function(boundary, sample.x_t, sample.x0, t)

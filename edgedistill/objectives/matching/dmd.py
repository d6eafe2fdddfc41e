"""Distribution matching distillation with stored pairs.

Yin et al. 2023, "One-step Diffusion with Distribution Matching Distillation" (arXiv 2311.18828):
the student's x0 descends the difference of the two scores, scaled to the sample (Eq. 7 and 8),
and from the noise of stored pairs it goes where the teacher's ODE went (Eq. 9).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.losses import matching_gradient
from edgedistill.diffusion.solvers import one_step_x0
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import Matching
from edgedistill.objectives.matching.rollout import Rollout

__all__ = ["DMD"]


class PathRegression:
    """Regression on the teacher's stored paths, which hold the pairs of noise and sample.

    With several steps each learns to go from the path's point at its time: to the path's end, or
    where steps are deterministic to its next point.

    Args:
        rollout: The student's rollout, which chooses the step.
        distance: Distance of two x0.
    """

    def __init__(self, rollout: Rollout, distance: Distance) -> None:
        self.rollout, self.distance = rollout, distance

    def __call__(self, batch: Batch) -> Tensor:
        """Return the mean distance of the student's x0 from the path's, a scalar."""
        rollout, path, index = self.rollout, batch.path, self.rollout.index(batch)
        assert path is not None
        t, s = (rollout.times[i].to(path.device) for i in (index, index + 1))
        x_t, target = path[:, index], path[:, -1]
        if rollout.sampler == "ddim" and s > 0:
            target = one_step_x0(rollout.student.schedule, x_t, path[:, index + 1], t, s)
        return distance(self.distance, rollout.student(x_t, t, batch.cond), target).mean()


class DMD(Matching):
    """Distribution matching with a regression on the teacher's paths."""

    class Config(Matching.Config):
        """Hyperparameters (the paper's; `regression_steps` is the paths' own here)."""

        regression_weight: float = Field(0.25, ge=0)
        distance: Distance = Distance(kind="features")
        """Distance of the regression: LPIPS's, in a random network."""

    name = "dmd"
    needs_paths = True
    config: Config

    def __init__(self, config: DMD.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.regression = PathRegression(self.rollout, config.distance)

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        view = self.view(sample, batch)
        gradient = matching_gradient(view.x0, view.real, view.fake)
        return self.descent(sample, view, gradient, batch)

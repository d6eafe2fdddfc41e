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
from edgedistill.objectives.base import Batch
from edgedistill.objectives.matching.parts import Matching, View

__all__ = ["DMD"]


class DMD(Matching):
    """Matching beside regression on the teacher's paths, which hold the pairs.

    With several steps each learns to go from the path's point at its time: to the path's end, or
    where steps are deterministic to its next point.
    """

    class Config(Matching.Config):
        """Hyperparameters (the paper's; `regression_steps` is the paths' own here)."""

        regression_weight: float = Field(0.25, ge=0)
        distance: Distance = Distance(kind="features")
        """Of the regression; LPIPS' in a random network."""

    name = "dmd"
    needs_paths = True
    config: Config

    def gradient(self, view: View, batch: Batch) -> Tensor:
        return matching_gradient(view.x0, view.real, view.fake)

    def regression(self, batch: Batch) -> Tensor:
        path, index = batch.path, self.rollout.index(batch)
        assert path is not None
        t, s = (self.times[i].to(path.device) for i in (index, index + 1))
        x_t, target = path[:, index], path[:, -1]
        if self.rollout.sampler == "ddim" and s > 0:
            target = one_step_x0(self.student.schedule, x_t, path[:, index + 1], t, s)
        return distance(self.config.distance, self.student(x_t, t, batch.cond), target).mean()

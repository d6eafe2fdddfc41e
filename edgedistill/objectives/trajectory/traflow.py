"""TraFlow: three targets for one map along the teacher's flow.

Wu et al. 2025, "TraFlow: Trajectory Distillation on Pre-Trained Rectified Flow" (arXiv
2502.16972), in the straight coordinates of `flow_map`, where the student's step from tau to any
earlier time is G(y, tau, s) = y - (tau - s) u(y, tau, s), with a network conditioned on s:

- output: G(y, tau, 0) is where the teacher's flow ends;
- velocity: u(y, tau, s) is the teacher's change on the way to a time s between, over tau - s;
- self-consistency: G(y, tau, 0) = sg G(y_s, s, 0), y_s the teacher's.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.common.settings import renamed
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.networks.two_times import TwoTimes, steps_of
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.objectives.trajectory.flow_map import STRAIGHT, Path, over, tau_of

__all__ = ["TraFlow", "trajectory"]


def trajectory(flow: Path, y: Tensor, tau: Tensor, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Take Heun's equal steps from tau (N,) to 0, the last by Euler; return (y, tau) of each."""
    made = []
    for left in range(steps, 0, -1):
        end = tau * (left - 1) / left
        first = flow(y, tau)
        y_s = y - over(tau - end, y) * first
        if left > 1:
            y_s = y - over(tau - end, y) * (first + flow(y_s, end)) / 2
        y, tau = y_s, end
        made.append((y, tau))
    return made


class TraFlow(Objective):
    """Trains output, velocity and self-consistency together."""

    class Config(Settings):
        """Hyperparameters of TraFlow."""

        old_keys = renamed(
            output="output_weight", velocity="velocity_weight", consistency="consistency_weight"
        )

        output_weight: float = Field(1.0, ge=0)
        """Weight of the output term."""
        velocity_weight: float = Field(1.0, ge=0)
        """Weight of the velocity term."""
        consistency_weight: float = Field(1.0, ge=0)
        """Weight of the self-consistency term."""
        solver_steps: int = Field(8, ge=2, le=10_000)
        """Number of the teacher's steps from any time to 0."""
        distance: Distance = Distance()
        times: TimeSampling = TimeSampling(low=0.02)
        """Distribution of tau."""

    name = "traflow"

    def __init__(self, config: TraFlow.Config, setup: Setup) -> None:
        self.config, self.setup = config, setup
        self.teacher, self.student = setup.teacher, setup.student
        self.limit = float(tau_of(self.student.schedule, setup.times[0]))
        steps = steps_of(self.student, setup.times, to_end=setup.sampler == "renoise")
        net = TwoTimes(self.student.net, setup.time_layer, steps)
        self.student.net = net.to(setup.example[0].device)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.setup.optim)]

    def finished(self, student: Denoiser) -> Denoiser:
        assert isinstance(student.net, TwoTimes)
        return student.with_net(student.net.folded(*self.setup.example))

    def loss(self, player: str, batch: Batch) -> Losses:
        config, count = self.config, len(batch.x0)
        tau = sample_times(config.times, STRAIGHT, count, batch.generator)
        tau = tau.clamp(max=self.limit).to(batch.x0.device)
        eps, zero = batch.noise(), torch.zeros_like(tau)
        y = over(1 - tau, eps) * batch.x0 + over(tau, eps) * eps
        ours = Path(self.student, batch.cond)
        with torch.no_grad():
            path = trajectory(Path(self.teacher, batch.cond), y, tau, config.solver_steps)
            place = torch.randint(len(path) - 1, (), generator=batch.shared)
            (y_s, s), (end, _) = path[int(place)], path[-1]
            change = (y - y_s) / over(tau - s, y)
            consistent = y_s - over(s, y) * ours(y_s, s, zero)
        y_0 = y - over(tau, y) * ours(y, tau, zero)
        kind = config.distance
        terms = {
            "output": distance(kind, y_0, end).mean(),
            "velocity": distance(kind, ours(y, tau, s), change).mean(),
            "consistency": distance(kind, y_0, consistent).mean(),
        }
        weights = (config.output_weight, config.velocity_weight, config.consistency_weight)
        total = sum(w * term for w, term in zip(weights, terms.values(), strict=True))
        return Losses(torch.as_tensor(total), {k: term.detach() for k, term in terms.items()})

"""Latent consistency distillation with a guided solver.

Luo et al. 2023, "Latent Consistency Models" (arXiv 2310.04378); guidance is baked in at one scale
as in LCM-LoRA (arXiv 2311.05556). Consistency distillation: Song et al. 2023 (arXiv 2303.01469).
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.denoiser import Condition, Denoiser
from edgedistill.losses import pseudo_huber
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.sampling import Boundary, ddim_step, time_grid

__all__ = ["LCM", "consistency_boundary"]


def consistency_boundary(scaling: float, sigma_data: float = 0.5) -> Boundary:
    """c_skip = s^2 / (T^2 + s^2), c_out = T / sqrt(T^2 + s^2), T = scaling 1000 t (LCM, Sec. 3).

    At t = 0 the function is x itself; a few timesteps later it is x0.
    """

    def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
        scaled = scaling * 1000 * t.double()
        total = scaled.square() + sigma_data**2
        return sigma_data**2 / total, scaled / total.sqrt()

    return boundary


class LCM(Objective):
    """f(x_t, t) = sg f_ema(x_s, s), with x_s one guided DDIM step of the teacher away."""

    class Config(Settings):
        """Hyperparameters (LCM, Sec. 4.3 and Table 4)."""

        solver_steps: int = Field(50, ge=2)
        """Teacher steps the time axis is cut into; one consistency step skips 1000 / this."""
        huber_c: float = Field(1e-3, gt=0)
        """Above 0: at 0 the loss has no gradient where student and target agree."""
        ema: float = Field(0.95, ge=0, lt=1)
        """Decay of the target network."""
        timestep_scaling: float = Field(10.0, gt=0)

    name = "lcm"

    def __init__(self, config: LCM.Config, setup: Setup) -> None:
        self.config = config
        self.teacher = setup.teacher
        self.student = setup.student
        self.target = copy.deepcopy(setup.student).requires_grad_(False)
        self.optim = setup.optim
        self.grid = time_grid(setup.student.schedule, config.solver_steps)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def followers(self) -> dict[str, nn.Module]:
        return {"target": self.target}

    def boundary(self) -> Boundary:
        return consistency_boundary(self.config.timestep_scaling)

    def updated(self, player: str) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.target.parameters()),
                list(self.student.parameters()),
                1 - self.config.ema,
            )

    def consistency(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """f(x_t, t) = c_skip x_t + c_out x0 (LCM, Eq. 9)."""
        skip, out = self.boundary()(t)
        shape = (-1,) + (1,) * (x_t.ndim - 1)
        x0: Tensor = denoiser(x_t, t, cond)
        return skip.reshape(shape).to(x_t) * x_t + out.reshape(shape).to(x_t) * x0

    def loss(self, player: str, batch: Batch) -> Losses:
        n, grid = len(batch.x0), self.grid.to(batch.x0.device)
        index = torch.randint(self.config.solver_steps, (n,), generator=batch.generator)
        t, s = grid[index], grid[index + 1]
        x_t = self.student.noised(batch.x0, t, batch.noise())
        with torch.no_grad():
            x0 = self.teacher(x_t, t, batch.cond)
            x_s = ddim_step(self.student.schedule, x_t, x0, t, s)
            # At s = 0 the boundary makes f(x_s, s) = x_s, whatever the network is asked.
            target = self.consistency(self.target, x_s, s.clamp(min=grid[-2] * 1e-3), batch.cond)
            target = torch.where((s == 0).reshape((-1,) + (1,) * (x_t.ndim - 1)), x_s, target)
        ours = self.consistency(self.student, x_t, t, batch.cond)
        loss = pseudo_huber(ours, target, self.config.huber_c)
        return Losses(loss, {"consistency": loss.detach()})

"""Latent consistency distillation with a guided solver.

Luo et al. 2023, "Latent Consistency Models" (arXiv 2310.04378); guidance is baked in at one scale
as in LCM-LoRA (arXiv 2311.05556), or the student is conditioned on the scale during training (its
Alg. 1). Consistency distillation: Song et al. 2023 (arXiv 2303.01469).
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from edgedistill.diffusion.boundary import consistency_function, lcm_boundary
from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.few_step import Boundary
from edgedistill.diffusion.solvers import ddim_step, time_grid
from edgedistill.diffusion.times import neighbours
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.objectives.scales import Scales

__all__ = ["LCM"]


class LCM(Objective):
    """Trains f(x_t, t) = sg f_ema(x_s, s), with x_s one guided DDIM step of the teacher away."""

    class Config(Settings):
        """Hyperparameters (of LCM's published training script)."""

        solver_steps: int = Field(50, ge=2, le=10_000)
        """Number of teacher steps that the time axis is divided into; a consistency step skips
        1000 / this."""
        huber_c: float = Field(1e-3, gt=0)
        """Constant of the loss, above 0: at 0 there is no gradient where student and target
        agree."""
        distance: Distance | None = None
        """Distance that replaces pseudo-Huber with `huber_c`."""
        ema: float = Field(0.95, ge=0, lt=1)
        """Decay of the target network."""
        timestep_scaling: float = Field(10.0, gt=0)
        guidance: tuple[float, float] | None = None
        """Smallest and largest scale that the student is conditioned on (the paper's are 3 and 15,
        in the convention in which 1 is no guidance); it keeps the teacher's. None trains only that
        one."""

        @model_validator(mode="after")
        def _ordered(self) -> LCM.Config:
            if self.guidance and not 0 <= self.guidance[0] < self.guidance[1]:
                low, high = self.guidance
                raise ValueError(f"guidance: {low:g} to {high:g}; the first must be the less")
            return self

    name = "lcm"

    def __init__(self, config: LCM.Config, setup: Setup) -> None:
        self.config = config
        self.teacher = setup.teacher
        self.student = setup.student
        self.scales = Scales(self.name, setup, *config.guidance) if config.guidance else None
        self.target = copy.deepcopy(setup.student).requires_grad_(False)
        self.optim = setup.optim
        self.distance = config.distance or Distance(kind="pseudo-huber", c=config.huber_c)
        self.grid = time_grid(setup.student.schedule, config.solver_steps)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def followers(self) -> dict[str, nn.Module]:
        return {"target": self.target}

    def finished(self, student: Denoiser) -> Denoiser:
        return self.scales.kept(student) if self.scales else student

    def boundary(self) -> Boundary:
        return lcm_boundary(self.config.timestep_scaling)

    def updated(self, player: str) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.target.parameters()),
                list(self.student.parameters()),
                1 - self.config.ema,
            )

    def consistency(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return f(x_t, t) = c_skip x_t + c_out x0 (LCM, Eq. 9)."""
        x0: Tensor = denoiser(x_t, t, cond)
        return consistency_function(self.boundary(), x_t, x0, t)

    def loss(self, player: str, batch: Batch) -> Losses:
        grid = self.grid
        t, s = neighbours(grid, len(batch.x0), batch.generator)
        t, s = t.to(batch.x0.device), s.to(batch.x0.device)
        x_t, cond = self.student.noised(batch.x0, t, batch.noise()), batch.cond
        with torch.no_grad():
            if self.scales:
                scale = self.scales.draw(batch)
                x0 = self.scales.guided(x_t, t, cond, scale)
                cond = self.scales.tell(cond, scale)
            else:
                x0 = self.teacher(x_t, t, cond)
            x_s = ddim_step(self.student.schedule, x_t, x0, t, s)
            target = self.consistency(self.target, x_s, s, cond)
        ours = self.consistency(self.student, x_t, t, cond)
        loss = distance(self.distance, ours, target).mean()
        return Losses(loss, {"consistency": loss.detach()})

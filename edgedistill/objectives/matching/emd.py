"""EM distillation: the student learns from samples that were corrected towards the teacher.

Xie et al. 2024, "EM Distillation for One-step Diffusion Models" (arXiv 2405.16852). The noise z
that a sample is made of and the noise eps that it is given, x_t = alpha S(z) + sigma eps, are
moved together by Langevin steps whose law has the teacher's marginal in x_t:

    eps += gamma / 2 (sigma (s_teacher - s_fake) - eps) + sqrt(gamma) n
    z += gamma_z / 2 (alpha J^T (s_teacher - s_fake) - z) + sqrt(gamma_z) n

(its reparametrised sampling), and S(z) moves along what eps has become, which is the gradient of
log q(x_t | z). All noise that went into eps is taken off again (its noise cancellation): what is
left is the scores' part. One step without moving z is vsd, which seeks modes; more steps look for
likely samples that the student does not make yet.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.losses import surrogate_loss
from edgedistill.diffusion.solvers import init_scale
from edgedistill.objectives.base import Batch, Losses
from edgedistill.objectives.matching.parts import Matching, View, health

__all__ = ["EMD"]


class EMD(Matching):
    """S(z) moves along the corrected eps."""

    class Config(Matching.Config):
        """Hyperparameters (the paper's on ImageNet)."""

        langevin_steps: int = Field(16, ge=1, le=10_000)
        """Each is a call of both scores and of the student with its gradient."""
        eps_step: float = Field(0.16, gt=0)
        """gamma."""
        noise_step: float = Field(1.6e-5, ge=0)
        """gamma_z."""

    name = "emd"
    chooses_levels = True
    single_step = True
    config: Config

    def student_loss(self, batch: Batch) -> Losses:
        config, schedule = self.config, self.student.schedule
        sample = self.rollout(batch)
        t = schedule.snap(self.levels(batch)).to(sample.x0.device)
        scale = init_scale(schedule, self.times[0])
        z, moved, views = self.correct(sample.x_t / scale, t, batch)
        x0 = self.made(z, batch.cond)
        _, sigma = schedule.at(t, like=z)
        # With one step this is vsd's sigma^2 (eps_teacher - eps_fake).
        gradient = -2 / (config.eps_step * config.langevin_steps) * sigma.square() * moved
        loss = surrogate_loss(x0, torch.nan_to_num(gradient))
        losses = Losses(loss, health(views[0], gradient, batch.x0))
        return self.helped(losses, sample, batch)

    def made(self, z: Tensor, cond: Condition) -> Tensor:
        """The student's sample of standard normal z, (N, ...)."""
        start = init_scale(self.student.schedule, self.times[0]) * z
        x0: Tensor = self.student(start, self.times[0].to(z.device), cond)
        return x0

    def correct(self, z: Tensor, t: Tensor, batch: Batch) -> tuple[Tensor, Tensor, list[View]]:
        """(z, what the scores made of eps, what they saw at each step) after the Langevin steps.

        Args:
            z: Standard normal, (N, ...).
            t: Noise levels, (N,).
            batch: Gives condition and randomness.
        """
        config = self.config
        alpha, sigma = self.student.schedule.at(t, like=z)
        keep_eps, step_eps = 1 - 0.5 * config.eps_step, 0.5 * config.eps_step * sigma
        keep_z, step_z = 1 - 0.5 * config.noise_step, 0.5 * config.noise_step
        eps, moved, views = batch.noise(), torch.zeros_like(z), []
        for _ in range(config.langevin_steps):
            with torch.enable_grad():
                start = z.detach().requires_grad_(True)
                x0 = self.made(start, batch.cond)
            with torch.no_grad():
                x_t = alpha * x0 + sigma * eps
                real = self.teacher(x_t, t, batch.cond)
                fake = self.fake_score.x0(x_t, t, batch.cond)
                apart = alpha / sigma.square() * (real - fake)
            views.append(View(x0.detach(), x_t, t, real, fake))
            (slope,) = torch.autograd.grad(x0, start, alpha * apart)
            with torch.no_grad():
                moved = keep_eps * moved + step_eps * apart
                eps = keep_eps * eps + step_eps * apart + config.eps_step**0.5 * batch.noise()
                z = keep_z * z + step_z * slope + config.noise_step**0.5 * batch.noise()
        return z, moved, views

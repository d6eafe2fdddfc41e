"""Denoising diffusion GANs: the discriminator judges a step, not a sample.

Xiao et al. 2021, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs" (arXiv
2112.07804): x_s is drawn from q(x_s | x_t, x0), with the student's x0 or the data's, and the
discriminator sees x_s beside x_t. The paper's generator has a latent of its own, which makes the
step multimodal; a student's step has none, so that what it cannot tell from x_t it averages.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.prediction import to_x0
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import init_scale
from edgedistill.diffusion.step_table import Step, TorchStepTable
from edgedistill.diffusion.tensors import expand_like
from edgedistill.objectives.adversarial.parts import GAN, Round
from edgedistill.objectives.base import Batch

__all__ = ["DDGAN", "posterior"]


def posterior(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(p, q, r) of q(x_s | x_t, x0) = N(p x_t + q x0, r^2), s < t (Ho et al. 2020, Eq. 6-7)."""
    alpha_t, sigma_t = schedule.alpha(t.double()), schedule.sigma(t.double())
    alpha_s, sigma_s = schedule.alpha(s.double()), schedule.sigma(s.double())
    ratio = alpha_t / alpha_s
    fresh = sigma_t.square() - (ratio * sigma_s).square()
    shares = sigma_s.square() / sigma_t.square(), fresh / sigma_t.square()
    return ratio * shares[0], alpha_s * shares[1], sigma_s * shares[1].sqrt()


class DDGAN(GAN):
    """(x_t, q(x_s | x_t, student's x0)) is as likely as (x_t, q(x_s | x_t, x0))."""

    class Config(GAN.Config):
        """Hyperparameters (the paper's for CIFAR-10)."""

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "non-saturating"
        r1_weight: float = Field(0.02 / 15, ge=0)
        """The paper's 0.02 is taken every 15th time, this every time."""

    config: DDGAN.Config
    name = "ddgan"
    own_coefficients = True
    frozen = False
    places = 2

    def round(self, batch: Batch) -> Round:
        x_t, t, s = self.start(batch)
        x0, s = self.student(x_t, t, batch.cond), self.seen(s)
        before = (x_t, t)
        fake = [(self.drawn(x_t, x0, t, s, batch), s), before]
        real = [(self.drawn(x_t, batch.x0, t, s, batch), s), before]
        return Round(x_t, t, x0, fake, real)

    def drawn(self, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, batch: Batch) -> Tensor:
        """A draw of q(x_s | x_t, x0), (N, ...)."""
        found = posterior(self.student.schedule, t, s)
        p, q, r = (expand_like(number, x_t).to(x_t) for number in found)
        return p * x_t + q * x0 + r * batch.noise()

    def table(self) -> TorchStepTable:
        schedule, prediction = self.student.schedule, self.student.prediction
        times = self.times.double().cpu()
        rows = []
        for t, s in pairwise(times):
            x0 = to_x0(prediction, schedule.alpha(t), schedule.sigma(t))
            p, q, r = posterior(schedule, t, s)
            scale = schedule.input_scale(t)
            numbers = [schedule.net_time(t), scale, p + q * x0.x, q * x0.y, r]
            rows.append(Step(*(float(number) for number in numbers)))
        return TorchStepTable(tuple(rows), init_scale(schedule, times[0]))

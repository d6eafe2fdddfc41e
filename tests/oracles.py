"""Closed forms that tests compare with: Gaussian data, whose every map is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import Boundary
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule


class Gaussian:
    """x0 ~ N(mean, scale^2 I) under a schedule whose network time is t itself."""

    def __init__(self, mean: list[float], scale: float, schedule: Schedule) -> None:
        self.mean, self.scale, self.schedule = torch.tensor(mean), scale, schedule

    def deviation(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, standard deviation) of x_t."""
        alpha, sigma = self.schedule.at(t, like=like)
        return alpha, (alpha**2 * self.scale**2 + sigma**2).sqrt()

    def posterior(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t]."""
        mean = self.mean.to(x_t)
        alpha, deviation = self.deviation(t, x_t)
        return mean + alpha * self.scale**2 / deviation**2 * (x_t - alpha * mean)

    def consistency(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Where the probability-flow ODE takes x_t at time 0: the same quantile of x0."""
        mean = self.mean.to(x_t)
        alpha, deviation = self.deviation(t, x_t)
        return mean + self.scale / deviation * (x_t - alpha * mean)

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Where the probability-flow ODE takes x_t at time s."""
        mean = self.mean.to(x_t)
        alpha_t, deviation_t = self.deviation(t, x_t)
        alpha_s, deviation_s = self.deviation(s, x_t)
        return alpha_s * mean + deviation_s / deviation_t * (x_t - alpha_t * mean)

    def log_density(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_t) without its constant, (N,)."""
        alpha, deviation = self.deviation(t, x_t)
        offset = (x_t - alpha * self.mean.to(x_t)) / deviation
        return -0.5 * offset.square().sum(1) - x_t.shape[1] * deviation[:, 0].log()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """True samples (count, D)."""
        return self.mean + self.scale * torch.randn(count, len(self.mean), generator=generator)

    def denoiser(self) -> Denoiser:
        """The exact teacher."""
        net = Affine(self.posterior)
        return Denoiser(net, self.schedule, Prediction.X0).requires_grad_(False)


class Affine(nn.Module):
    """gain * map(x, t) + shift: exact as it is built, and trainable away from it."""

    def __init__(self, function, gain: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.function = function
        self.gain = nn.Parameter(torch.tensor(gain))
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.gain * self.function(x, t) + self.shift


def consistency_student(
    data: Gaussian, boundary: Boundary, gain: float = 1.0, shift: float = 0.0
) -> Denoiser:
    """A student whose consistency function c_skip x_t + c_out x0 is the exact one."""

    def x0(x: Tensor, t: Tensor) -> Tensor:
        skip, out = (c.reshape(-1, 1).to(x) for c in boundary(t))
        return (data.consistency(x, t) - skip * x) / out

    return Denoiser(Affine(x0, gain, shift), data.schedule, Prediction.X0)

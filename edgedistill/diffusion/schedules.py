"""The noise schedules: variance preserving, variance exploding, EDM's and rectified flow's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgedistill.diffusion.schedule import Angular, Schedule

__all__ = [
    "SCHEDULES",
    "VE",
    "Cosine",
    "Discrete",
    "Karras",
    "Linear",
    "Rectified",
    "Trig",
    "schedule_from_json",
]


class Trig(Angular):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Lu & Song 2024, arXiv 2410.11081)."""

    name = "trig"

    def angle(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * t

    def d_angle(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 0.5 * math.pi)

    def time_of_angle(self, angle: Tensor) -> Tensor:
        return angle / (0.5 * math.pi)


class Cosine(Angular):
    """alpha = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)) (Nichol & Dhariwal 2021, Eq. 17)."""

    name = "cosine"

    def __init__(self, offset: float = 0.008) -> None:
        if not 0 < offset < 1:
            raise ValueError(f"cosine offset must be in (0, 1), not {offset}")
        self.offset = offset

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor, float]:
        rate = 0.5 * math.pi / (1 + self.offset)
        phase = rate * (t + self.offset)
        return phase, phase.cos() / math.cos(rate * self.offset), rate

    def angle(self, t: Tensor) -> Tensor:
        return self._alpha(t)[1].clamp(0.0, 1.0).acos()

    def d_angle(self, t: Tensor) -> Tensor:
        phase, alpha, rate = self._alpha(t)
        d_alpha = -rate * phase.sin() / math.cos(rate * self.offset)
        return -d_alpha / (1 - alpha**2).clamp(min=1e-30).sqrt()

    def time_of_angle(self, angle: Tensor) -> Tensor:
        rate = 0.5 * math.pi / (1 + self.offset)
        phase = (angle.cos() * math.cos(rate * self.offset)).acos()
        return phase / rate - self.offset

    def parameters(self) -> dict[str, Any]:
        return {"offset": self.offset}


class Linear(Angular):
    """Linear beta: log alpha = -t^2 (b1 - b0)/4 - t b0/2 (Song et al. 2021, Eq. 33)."""

    name = "linear"

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min < beta_max:
            raise ValueError(f"need 0 < beta_min < beta_max, not {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def angle(self, t: Tensor) -> Tensor:
        log_alpha = self._log_alpha(t)
        return torch.atan2((-torch.expm1(2 * log_alpha)).sqrt(), log_alpha.exp())

    def d_angle(self, t: Tensor) -> Tensor:
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        angle = self.angle(t)
        return 0.5 * beta * angle.cos() / angle.sin().clamp(min=1e-30)

    def time_of_angle(self, angle: Tensor) -> Tensor:
        slope, log_alpha = self.beta_max - self.beta_min, angle.cos().log()
        return (-self.beta_min + (self.beta_min**2 - 4 * slope * log_alpha).sqrt()) / slope

    def parameters(self) -> dict[str, Any]:
        return {"beta_min": self.beta_min, "beta_max": self.beta_max}


class Discrete(Angular):
    """A table of N trained timesteps k = 0 .. N-1, as in DDPM and Stable Diffusion.

    Timestep k stands at t = (k + 1) / N and t = 0 is clean data, so trailing spacing is simply
    equal steps in t. Between table entries the angle is interpolated linearly.

    Args:
        alphas_cumprod: Squared signal levels of the N timesteps, decreasing, in [0, 1].
    """

    name = "discrete"

    def __init__(self, alphas_cumprod: Tensor | list[float]) -> None:
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        if table.ndim != 1 or len(table) < 2 or not bool((table.diff() < 0).all()):
            raise ValueError("alphas_cumprod must be a decreasing list of at least 2 numbers")
        if table[0] >= 1 or table[-1] < 0:
            raise ValueError("alphas_cumprod must lie in [0, 1)")
        self.alphas_cumprod = table
        angles = torch.atan2((1 - table).sqrt(), table.sqrt())
        self._angles = torch.cat([torch.zeros(1, dtype=torch.float64), angles])

    @property
    def num_timesteps(self) -> int:
        """N."""
        return len(self.alphas_cumprod)

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angles = self._angles.to(t.device)
        place = (t * self.num_timesteps).clamp(0, self.num_timesteps)
        left = place.floor().clamp(max=self.num_timesteps - 1).long()
        return angles[left], angles[left + 1], place - left

    def angle(self, t: Tensor) -> Tensor:
        low, high, fraction = self._locate(t)
        return torch.lerp(low, high, fraction)

    def d_angle(self, t: Tensor) -> Tensor:
        low, high, _ = self._locate(t)
        return (high - low) * self.num_timesteps

    def time_of_angle(self, angle: Tensor) -> Tensor:
        angles = self._angles.to(angle.device)
        right = torch.searchsorted(angles, angle.contiguous()).clamp(1, self.num_timesteps)
        low, high = angles[right - 1], angles[right]
        return (right - 1 + (angle - low) / (high - low)) / self.num_timesteps

    def net_time(self, t: Tensor) -> Tensor:
        return t * self.num_timesteps - 1

    def time_of_net_time(self, net_time: Tensor) -> Tensor:
        return (net_time.double() + 1) / self.num_timesteps

    def snap(self, t: Tensor) -> Tensor:
        n = self.num_timesteps
        return (t * n).round().clamp(1, n) / n

    def parameters(self) -> dict[str, Any]:
        return {"alphas_cumprod": self.alphas_cumprod.tolist()}


class VE(Schedule):
    """Variance exploding: alpha = 1, sigma from sigma_min to sigma_max by Karras' rule.

    Karras et al. 2022 (arXiv 2206.00364), Eq. 5; t = 0 is sigma_min, not clean data. The network
    reads x_t / sqrt(1 + sigma^2), as eps-predictors with this schedule do.
    """

    name = "ve"

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self._low: float = sigma_min ** (1 / rho)
        self._high: float = sigma_max ** (1 / rho)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return self._root(t).pow(self.rho)

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float64)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.rho * self._root(t).pow(self.rho - 1) * (self._high - self._low)

    def _root(self, t: Tensor) -> Tensor:
        return self._low + t.double() * (self._high - self._low)

    def time_of(self, log_snr: Tensor) -> Tensor:
        root = (-0.5 * log_snr.double()).exp().pow(1 / self.rho)
        return (root - self._low) / (self._high - self._low)

    def input_scale(self, t: Tensor) -> Tensor:
        return (1 + self.sigma(t).square()).rsqrt()

    def parameters(self) -> dict[str, Any]:
        return {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}


class Karras(Angular):
    """EDM's noise levels on data divided by sigma_data: alpha, sigma ~ sigma_data, level.

    Karras et al. 2022 (arXiv 2206.00364): levels by Eq. 5, so that t = 0 is sigma_min, and the
    preconditioning of Table 1. With both x and x0 in units of sigma_data, c_in x is this
    schedule's x_t, c_skip and c_out are those of v-prediction, and c_noise is `net_time`.

    Args:
        sigma_min: The least level, of the noise added to the data as it is.
        sigma_max: The largest.
        rho: How much the steps crowd at the small levels.
        sigma_data: Standard deviation of the data as it is.
    """

    name = "karras"

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        sigma_data: float = 0.5,
    ) -> None:
        if sigma_data <= 0:
            raise ValueError(f"sigma_data must be above 0, not {sigma_data}")
        self.levels, self.sigma_data = VE(sigma_min, sigma_max, rho), sigma_data

    def angle(self, t: Tensor) -> Tensor:
        return (self.levels.sigma(t) / self.sigma_data).atan()

    def d_angle(self, t: Tensor) -> Tensor:
        ratio = self.levels.sigma(t) / self.sigma_data
        return self.levels.d_sigma(t) / self.sigma_data / (1 + ratio.square())

    def time_of_angle(self, angle: Tensor) -> Tensor:
        return self.levels.time_of(-2 * (self.sigma_data * angle.tan()).log())

    def net_time(self, t: Tensor) -> Tensor:
        return self.levels.sigma(t).log() / 4

    def time_of_net_time(self, net_time: Tensor) -> Tensor:
        return self.levels.time_of(-8 * net_time.double())

    def parameters(self) -> dict[str, Any]:
        return {**self.levels.parameters(), "sigma_data": self.sigma_data}


class Rectified(Schedule):
    """alpha = 1 - sigma, sigma = t (rectified flow, Liu et al. 2022, arXiv 2209.03003), shifted.

    With a shift, sigma = shift t / (1 + (shift - 1) t) (Esser et al. 2024, arXiv 2403.03206,
    Eq. 23), so that equal steps in t are the steps large pictures need.

    Args:
        num_timesteps: The network reads sigma * num_timesteps (1000 in SD3).
        shift: 1 is none; 3 in SD3.
    """

    name = "rectified"

    def __init__(self, num_timesteps: int = 1000, shift: float = 1.0) -> None:
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps must be at least 1, not {num_timesteps}")
        if shift <= 0:
            raise ValueError(f"shift must be above 0, not {shift}")
        self.num_timesteps, self.shift = num_timesteps, shift

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.sigma(t)

    def sigma(self, t: Tensor) -> Tensor:
        t = t.double()
        return self.shift * t / (1 + (self.shift - 1) * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.d_sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.shift / (1 + (self.shift - 1) * t.double()).square()

    def time_of(self, log_snr: Tensor) -> Tensor:
        sigma = torch.sigmoid(-0.5 * log_snr.double())
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def net_time(self, t: Tensor) -> Tensor:
        return self.sigma(t) * self.num_timesteps

    def time_of_net_time(self, net_time: Tensor) -> Tensor:
        sigma = net_time.double() / self.num_timesteps
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def parameters(self) -> dict[str, Any]:
        found: dict[str, Any] = {"num_timesteps": self.num_timesteps}
        return found if self.shift == 1 else {**found, "shift": self.shift}


SCHEDULES: dict[str, type[Schedule]] = {
    s.name: s for s in (Trig, Cosine, Linear, Discrete, VE, Karras, Rectified)
}


def schedule_from_json(data: Mapping[str, Any]) -> Schedule:
    """Rebuild a schedule from `Schedule.to_json`; ValueError names an unknown one."""
    arguments = dict(data)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; choose from {', '.join(sorted(SCHEDULES))}")
    try:
        return SCHEDULES[name](**arguments)
    except TypeError as error:
        raise ValueError(f"schedule {name!r}: {error}") from None

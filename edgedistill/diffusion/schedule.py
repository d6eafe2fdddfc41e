"""Noise schedules: t -> (alpha, sigma), with x_t = alpha(t) x0 + sigma(t) eps.

Time runs over [0, 1] and grows with the noise. Coefficients are computed in float64 and cast to
the data only where they meet it (`Schedule.at`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgedistill.diffusion.tensors import expand_like

__all__ = ["Angular", "Schedule"]


class Schedule(ABC):
    """A map from time to signal and noise levels.

    Subclasses give `alpha`, `sigma` and their derivatives as float64 tensors of t's shape.
    """

    name: ClassVar[str]

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal level at t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at t."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Derivative of alpha with respect to t."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of sigma with respect to t."""

    @abstractmethod
    def time_of(self, log_snr: Tensor) -> Tensor:
        """The t at which log(alpha^2 / sigma^2) equals `log_snr`."""

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t of shape (N,), shaped and cast to multiply `like` (N, ...)."""
        t = t.double()
        alpha, sigma = self.alpha(t), self.sigma(t)
        return expand_like(alpha, like).to(like), expand_like(sigma, like).to(like)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at t."""
        t = t.double()
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def net_time(self, t: Tensor) -> Tensor:
        """Time as the network was trained to read it."""
        return t

    def time_of_net_time(self, net_time: Tensor) -> Tensor:
        """The t at which the network reads `net_time`: the inverse of `net_time`."""
        return net_time.double()

    def input_scale(self, t: Tensor) -> Tensor:
        """Factor on x_t before it enters the network."""
        return torch.ones_like(t, dtype=torch.float64)

    def snap(self, t: Tensor) -> Tensor:
        """The nearest time the network was trained at (all of them, unless time is discrete)."""
        return t

    def parameters(self) -> dict[str, Any]:
        """Constructor arguments, JSON-ready."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """{"name": ..., **parameters}, read back by `schedule_from_json`."""
        return {"name": self.name, **self.parameters()}


class Angular(Schedule):
    """A variance-preserving schedule: alpha = cos(angle), sigma = sin(angle)."""

    @abstractmethod
    def angle(self, t: Tensor) -> Tensor:
        """Angle in [0, pi/2]."""

    @abstractmethod
    def d_angle(self, t: Tensor) -> Tensor:
        """Derivative of the angle."""

    @abstractmethod
    def time_of_angle(self, angle: Tensor) -> Tensor:
        """Inverse of `angle`."""

    def alpha(self, t: Tensor) -> Tensor:
        return self.angle(t.double()).cos()

    def sigma(self, t: Tensor) -> Tensor:
        return self.angle(t.double()).sin()

    def d_alpha(self, t: Tensor) -> Tensor:
        t = t.double()
        return -self.angle(t).sin() * self.d_angle(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        t = t.double()
        return self.angle(t).cos() * self.d_angle(t)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return self.time_of_angle((-0.5 * log_snr.double()).exp().atan())

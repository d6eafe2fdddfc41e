"""Scaling between an autoencoder's latents and the x0 of a diffusion network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Scaling", "latents_of", "picture_of"]


class Scaling(nn.Module):
    """A map of x0 to an autoencoder's latents z = x0 * deviation / factor + shift, and back.

    Args:
        factor: A number for all channels.
        shift: A number for all channels, or one for each.
        deviation: A number for each channel, or None for 1.
        sides: Number of axes after the channels: 2 for pictures, 3 for videos.

    Raises:
        ValueError: If the factor or a deviation is 0, or a number is not finite.
    """

    mean: Tensor | None
    deviation: Tensor | None

    def __init__(
        self,
        factor: float = 1.0,
        shift: float | Sequence[float] = 0.0,
        deviation: Sequence[float] | None = None,
        sides: int = 2,
    ) -> None:
        super().__init__()
        one, each = (0.0, shift) if isinstance(shift, Sequence) else (float(shift), None)
        self.factor, self.shift = float(factor), one
        for name, values in (("mean", each), ("deviation", deviation)):
            tensor = None
            if values is not None:
                tensor = torch.tensor(values, dtype=torch.float32).reshape(-1, *[1] * sides)
            self.register_buffer(name, tensor, persistent=False)
        divisors = [self.factor, *(deviation or ())]
        if not all(divisors) or not torch.tensor([*divisors, *self.means()]).isfinite().all():
            raise ValueError(
                f"scaling_factor {factor}, shift {shift}, latents_std {deviation}: finite numbers "
                "expected, the first and the last not 0"
            )

    def means(self) -> list[float]:
        """Shift of each channel, or of all."""
        return [self.shift] if self.mean is None else self.mean.flatten().tolist()

    def forward(self, x0: Tensor) -> Tensor:
        """Return the latents z of x0 (N, C, ...)."""
        z = x0 if self.deviation is None else x0 * self.deviation
        return z / self.factor + (self.shift if self.mean is None else self.mean)

    def inverse(self, z: Tensor) -> Tensor:
        """Return the x0 of latents z (N, C, ...)."""
        x0 = (z - (self.shift if self.mean is None else self.mean)) * self.factor
        return x0 if self.deviation is None else x0 / self.deviation

    def describe(self) -> dict[str, float | list[float]]:
        """Return `scaling_factor` and `shift_factor`, and any mean and deviation by channel."""
        found: dict[str, float | list[float]] = {
            "scaling_factor": self.factor,
            "shift_factor": self.shift,
        }
        for name, values in (("latents_mean", self.mean), ("latents_std", self.deviation)):
            if values is not None:
                found[name] = values.flatten().tolist()
        return found


def latents_of(vae: Any, scaling: Scaling, pictures: Tensor) -> Tensor:
    """Encode pictures to x0 by the teacher's encoder, with the mode of its posterior."""
    found = vae.encode(pictures, return_dict=False)[0]
    return scaling.inverse(found if isinstance(found, Tensor) else found.mode())


def picture_of(vae: Any, scaling: Scaling, x0: Tensor) -> Tensor:
    """Decode x0 to pictures by the teacher's decoder."""
    picture: Tensor = vae.decode(scaling(x0), return_dict=False)[0]
    return picture

"""A small residual network for data in the plane (or any few dimensions)."""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from edgedistill.common.reading import short

__all__ = ["PlanarNet"]


LARGEST = {"dim": 2**16, "width": 2**13, "depth": 256, "frequencies": 2**12, "classes": 2**16}
"""Largest value of each size."""

MOST = 2**28
"""Number of weights of the largest network."""


def _check_sizes(**sizes: int) -> None:
    """Raise a ValueError if a size is invalid, or the network would be too large to allocate."""
    for name, size in sizes.items():
        least = 0 if name in {"depth", "classes"} else 1
        if type(size) is not int or not least <= size <= LARGEST[name]:
            expected = f"an integer from {least} to {LARGEST[name]} expected"
            raise ValueError(f"config.json: {name}={short(size)}: {expected}")
    dim, width, depth, frequencies, classes = sizes.values()
    inputs = dim * (2 + 2 * frequencies) + 2 * frequencies + classes
    weights = width * (inputs + (1 + 2 * depth) * width)
    if weights > MOST:
        raise ValueError(f"config.json: {weights} weights by its sizes; at most {MOST} expected")


class ResidualBlock(nn.Module):
    """Residual block x + W silu(V (norm(x) + time))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = x + self.down(nn.functional.silu(self.up(self.norm(x) + emb)))
        return out


class PlanarNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """A residual network of x (N, dim) and time (N,) in [0, 1] -> (N, dim).

    Args:
        dim: Data dimensions.
        width: Hidden width.
        depth: Residual blocks.
        frequencies: Fourier features of time and of each coordinate.
        extent: Half-width of the region that the coordinates' features resolve.
        classes: Number of classes that it is told apart, the null class not counted; 0 for none.

    Raises:
        ValueError: If sizes are above `LARGEST`, or there are more weights than `MOST`; nothing is
            allocated.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers is untyped
    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 2,
        frequencies: int = 16,
        extent: float = 4.0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(dim=dim, width=width, depth=depth, frequencies=frequencies, classes=classes)
        rates = torch.arange(1, frequencies + 1)
        self.register_buffer("time_rates", 0.5 * math.pi * rates, persistent=False)
        self.register_buffer("space_rates", math.pi / extent * rates, persistent=False)
        self.embed_time = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )
        if classes:
            self.embed_label = nn.Embedding(classes + 1, width)
        self.embed = nn.Linear(dim * (1 + 2 * frequencies), width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.head = nn.Linear(width, dim)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the network output (N, dim).

        Args:
            x: Points, (N, dim).
            t: Times, (N,).
            label: Classes by number, (N,), the null class last; for a network with classes.
        """
        phase = t.reshape(-1, 1).to(x) * self.time_rates.to(x)
        emb = self.embed_time(torch.cat([phase.sin(), phase.cos()], dim=-1))
        if label is not None:
            emb = emb + self.embed_label(label)
        waves = (x.unsqueeze(-1) * self.space_rates.to(x)).flatten(1)
        h = self.embed(torch.cat([x, waves.sin(), waves.cos()], dim=-1))
        for block in self.blocks:
            h = block(h, emb)
        out: Tensor = self.head(h)
        return out

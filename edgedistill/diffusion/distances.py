"""Distances of two predictions: one number a sample, so that a method can weight them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.common.settings import Settings
from edgedistill.diffusion.perceptual import NETWORKS, feature_distance

__all__ = [
    "DISTANCES",
    "Distance",
    "Ensemble",
    "augmented",
    "distance",
    "drift",
    "ensembled",
]


Kind: TypeAlias = Literal["l2", "l1", "pseudo-huber", "vector-huber", "features", "latent-lpips"]


class Distance(Settings):
    """Settings of a distance: its kind and its constant.

    `l2`: mean square. `l1`: mean absolute. `pseudo-huber`: mean of sqrt(d^2 + c^2) - c by element
    (as LCM's). `vector-huber`: sqrt(|d|^2 + c^2) - c of the whole sample with c times the root of
    its size (Song & Dhariwal 2023, arXiv 2310.14189, Eq. 4 and Sec. 3.3). `features`: LPIPS with
    random weights, of pictures or latents (N, C, H, W); see `Pyramid`. `latent-lpips`: LPIPS with
    weights that were trained on latents, for latents of the same autoencoder; see
    `LatentFeatures`.
    """

    kind: Kind = "l2"
    c: float = Field(1e-3, gt=0)
    """The constant, above 0: at 0 equal values have no gradient."""
    network: str = "emoji"
    """Trained features of `latent-lpips`: a safetensors file, or `emoji`, the shipped ones for the
    shipped teacher's latents."""


class Ensemble(Distance):
    """Settings of a distance of pictures or latents, (N, C, H, W), under random augmentations."""

    kind: Kind = "features"
    ensemble: int | None = Field(None, ge=0)
    """Augmentations of each pair over which the distance is averaged; 0 augments nothing. None is
    1 for distances of features, and 0 for others, which gain nothing from augmentation."""

    @property
    def draws(self) -> int:
        """Number of augmentations."""
        return int(self.kind in NETWORKS) if self.ensemble is None else self.ensemble


def _l2(d: Tensor, c: float) -> Tensor:
    return d.square().mean(1)


def _l1(d: Tensor, c: float) -> Tensor:
    return d.abs().mean(1)


def _pseudo_huber(d: Tensor, c: float) -> Tensor:
    return ((d.square() + c * c).sqrt() - c).mean(1)


def _vector_huber(d: Tensor, c: float) -> Tensor:
    scale = c * math.sqrt(d.shape[1])
    return (d.square().sum(1) + scale * scale).sqrt() - scale


DISTANCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l2": _l2,
    "l1": _l1,
    "pseudo-huber": _pseudo_huber,
    "vector-huber": _vector_huber,
}
"""Distances by name, (difference (N, size), c) -> (N,)."""


def distance(config: Distance, a: Tensor, b: Tensor) -> Tensor:
    """Return distances of a and b, (N, ...) each, in float32 or better: (N,).

    Raises:
        ValueError: If the distance is of features and a and b are not (N, C, H, W), or there are
            no features for them.
    """
    if a.dtype.itemsize < 4:
        a, b = a.float(), b.float()
    if config.kind in NETWORKS:
        if a.ndim != 4:
            raise ValueError(
                f"distance.kind={config.kind}: x0 of shape {tuple(a.shape[1:])} is no picture; "
                "choose l2, l1, pseudo-huber or vector-huber"
            )
        return feature_distance(NETWORKS[config.kind](config.network, a), a, b)
    return DISTANCES[config.kind]((a - b).flatten(1), config.c)


def augmented(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, scale, stretch, rotate and shift each of (N, C, H, W) at random, and cut a hole.

    The map is linear in the picture. Every draw applies all of it, as strongly as ADA (Karras et
    al. 2020, arXiv 2006.06676, App. B): sizes by 2^(n / 5), n standard normal, for both directions
    together and for one against the other; any angle; shifts of an eighth of the picture times n;
    pixels from outside are reflected. The hole is a square of half the picture's side, centred
    anywhere.

    Args:
        pictures: Pictures on any device.
        generator: CPU randomness.
    """
    count, _, height, width = pictures.shape
    even, normal = (draw(4, count, generator=generator) for draw in (torch.rand, torch.randn))
    size, stretch = 2 ** (0.2 * normal[0]), 2 ** (0.2 * normal[1])
    mirror, angle = torch.where(even[0] < 0.5, -1.0, 1.0), 2 * math.pi * even[1]
    across, down = 1 / (size * stretch), stretch / size
    cos, sin, aspect = angle.cos(), angle.sin(), height / width
    # A map from positions in the result to positions in the picture, both from -1 to 1.
    right = torch.stack([mirror * across * cos, mirror * across * sin * aspect, normal[2] / 4], 1)
    below = torch.stack([-down * sin / aspect, down * cos, normal[3] / 4], 1)
    places = torch.stack([right, below], 1).to(pictures)
    grid = nn.functional.affine_grid(places, list(pictures.shape), align_corners=False)
    moved = nn.functional.grid_sample(
        pictures, grid, padding_mode="reflection", align_corners=False
    )
    rows, columns = (
        ((torch.arange(n) + 0.5) / n - centre[:, None]).abs() < 0.25
        for n, centre in ((height, even[2]), (width, even[3]))
    )
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return moved * (~hole).to(pictures)


def ensembled(config: Ensemble, a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean distance of T a and T b over random augmentations T, (N,).

    With `latent-lpips`, or `features`, this is E-LatentLPIPS (Kang et al. 2024, arXiv 2405.05967,
    Sec. 3.2): differences that the network misses in one view show in others. Each pair has
    augmentations of its own, the same for both.

    Args:
        config: The distance, and the number of augmentations.
        a: First samples, (N, ...).
        b: Samples to compare with, (N, ...).
        generator: CPU randomness.

    Raises:
        ValueError: If an ensemble is requested for samples that are not pictures.
    """
    if a.ndim != 4 and config.ensemble:
        raise ValueError(
            f"distance.ensemble={config.ensemble}: x0 of shape {tuple(a.shape[1:])} is no picture "
            "to augment; choose 0"
        )
    if a.ndim != 4 or not config.draws:
        return distance(config, a, b)
    found = []
    for _ in range(config.draws):
        both = augmented(torch.cat([a, b], 1), generator)
        found.append(distance(config, *both.chunk(2, 1)))
    return torch.stack(found).mean(0)


@torch.no_grad()
def drift(x0: Tensor, data: Tensor) -> dict[str, Tensor]:
    """Return figures that show how a student's samples drift from data, both (N, ...); scalars.

    `mean_drift` is the root mean square distance of the two means, divided by its expected value
    between two draws of the data, sqrt(2 / N) times the data's standard deviation; `std_ratio` is
    the samples' standard deviation over the data's.
    """
    apart = (x0.mean(0) - data.mean(0)).square().mean().sqrt()
    std = data.std()
    return {"mean_drift": apart / (math.sqrt(2 / len(x0)) * std), "std_ratio": x0.std() / std}

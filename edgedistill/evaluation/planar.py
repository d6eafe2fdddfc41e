"""Samples of a mixture against the mixture itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgedistill.teachers.families.mixture import Mixture

__all__ = ["planar_figures", "sliced_w2"]

PROJECTIONS, FLOOR_PAIRS = 256, 4


def sliced_w2(a: Tensor, b: Tensor, generator: torch.Generator) -> float:
    """Return the sliced 2-Wasserstein distance of two sample sets (N, D) of equal size.

    It is the root of the mean squared 1-D distance over random directions (Bonneel et al. 2015).
    """
    if a.shape != b.shape:
        raise ValueError(f"samples of one shape expected, got {tuple(a.shape)}, {tuple(b.shape)}")
    directions = torch.randn(a.shape[1], PROJECTIONS, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    # NumPy sorts rows of contiguous numbers several times faster than torch.
    ours, theirs = (np.sort((x.double() @ directions).T.contiguous().numpy()) for x in (a, b))
    return float(np.sqrt(np.square(ours - theirs).mean()))


def planar_figures(
    samples: Tensor, mixture: Mixture, generator: torch.Generator
) -> dict[str, float]:
    """Return figures of how near samples are to their mixture.

    Returns:
        sliced_w2: Distance to fresh true samples.
        floor: Distance between two true draws of this size, a lower limit.
        w2_ratio: sliced_w2 / floor.
        within_3_sigma: Share of samples within 3 scales of some mode.
        smallest_mode: The smallest ratio of a mode's share of samples to its weight.
    """
    samples = samples.double().cpu()
    n = len(samples)
    truth = [mixture.draw(n, generator) for _ in range(2 * FLOOR_PAIRS)]
    pairs = list(zip(truth[::2], truth[1::2], strict=True))
    floor = sum(sliced_w2(a, b, generator) for a, b in pairs) / FLOOR_PAIRS
    ours = sum(sliced_w2(samples, a, generator) for a, _ in pairs) / FLOOR_PAIRS
    distance = torch.cdist(samples, mixture.means) / mixture.scales
    nearest = distance.argmin(1)
    share = torch.bincount(nearest, minlength=len(mixture.weights)) / n
    return {
        "sliced_w2": ours,
        "floor": floor,
        "w2_ratio": ours / floor,
        "within_3_sigma": (distance.min(1).values <= 3).double().mean().item(),
        "smallest_mode": (share / mixture.weights).min().item(),
        "samples": n,
    }

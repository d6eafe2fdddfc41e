"""Samples of a mixture against the mixture itself."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from edgedistill.teachers.families.mixture import Mixture

__all__ = ["class_w2", "planar_figures", "sliced_w2"]

PROJECTIONS, FLOOR_PAIRS = 256, 4
LEAST_SHARE = 1e-3


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


def class_w2(a: Tensor, b: Tensor, label: Tensor, generator: torch.Generator) -> float:
    """Return the root mean square, over samples (N, D), of their class's `sliced_w2`.

    Args:
        a: Samples.
        b: Other samples of the same classes.
        label: Classes of both, (N,).
        generator: Randomness of the directions.
    """
    squares = []
    for number in torch.unique(label):
        group = label == number
        share = group.double().mean().item()
        squares.append(share * sliced_w2(a[group], b[group], generator) ** 2)
    return math.sqrt(math.fsum(squares))


def planar_figures(
    samples: Tensor,
    mixture: Mixture,
    generator: torch.Generator,
    label: Tensor | None = None,
    guidance: float = 1.0,
) -> dict[str, float]:
    """Return figures of how near samples are to their mixture.

    Args:
        samples: Samples (N, D).
        mixture: The mixture.
        generator: Randomness of the true samples.
        label: Class of each sample, (N,), for a mixture with labels. Each class is compared with
            its own truth; distances are root mean squares over samples.
        guidance: Guidance scale of the truth (`Mixture.draw_guided`).

    Returns:
        sliced_w2: Distance to fresh true samples.
        floor: Distance between two true draws of this size, a lower limit.
        w2_ratio: sliced_w2 / floor.
        within_3_sigma: Share of samples within 3 scales of some mode, of their class.
        smallest_mode: The smallest ratio of a mode's share of samples to its share of the truth.
    """
    samples = samples.double().cpu()
    n = len(samples)
    classes = torch.zeros(n, dtype=torch.long) if label is None else label.cpu()

    def draw() -> Tensor:
        if label is None:
            return mixture.draw(n, generator)
        return mixture.draw_guided(classes, guidance, generator)

    truth = [draw() for _ in range(2 * FLOOR_PAIRS)]
    pairs = list(zip(truth[::2], truth[1::2], strict=True))
    floor = sum(class_w2(a, b, classes, generator) for a, b in pairs) / FLOOR_PAIRS
    ours = sum(class_w2(samples, a, classes, generator) for a, _ in pairs) / FLOOR_PAIRS
    own = mixture.labels if label is not None else None
    nearest, gap = _nearest(samples, mixture, classes, own)
    share = torch.bincount(nearest, minlength=len(mixture.weights)) / n
    return {
        "sliced_w2": ours,
        "floor": floor,
        "w2_ratio": ours / floor,
        "within_3_sigma": (gap <= 3).double().mean().item(),
        "smallest_mode": _smallest(share, mixture, truth, classes, own),
        "samples": n,
    }


def _nearest(
    samples: Tensor, mixture: Mixture, classes: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return each sample's nearest mode, of its class if modes have labels, and its distance."""
    gaps = torch.cdist(samples.double(), mixture.means) / mixture.scales
    if labels is not None:
        gaps = gaps.masked_fill(labels != classes[:, None], math.inf)
    gap, nearest = gaps.min(1)
    return nearest, gap


def _smallest(
    share: Tensor, mixture: Mixture, truth: list[Tensor], classes: Tensor, labels: Tensor | None
) -> float:
    """Return the smallest ratio of a mode's share to the true one.

    Without labels the true shares are the weights; with them, what true samples are nearest to.
    A mode that has less than a thousandth of the truth is left out.
    """
    known = mixture.weights
    if labels is not None:
        modes = torch.cat([_nearest(draw, mixture, classes, labels)[0] for draw in truth])
        known = torch.bincount(modes, minlength=len(known)).double() / len(modes)
    there = known > LEAST_SHARE if labels is not None else known > 0
    return (share[there] / known[there]).min().item()

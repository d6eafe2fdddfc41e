"""Figures of one set of pictures: against a reference, captions, and the teacher's pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.common.decibels import psnr
from edgedistill.evaluation.features import Eye
from edgedistill.evaluation.fidelity import (
    Reference,
    frechet_distance,
    half_interval,
    kernel_distance,
)
from edgedistill.evaluation.manifold import manifold_figures
from edgedistill.networks.clip import Features

__all__ = [
    "LEAST",
    "check_finite",
    "diversity",
    "errors",
    "fidelity_figures",
    "ratios",
    "spread_figures",
    "text_figures",
    "to_teacher_figures",
]

Figures = dict[str, Any]

LEAST = 2
"""Samples a feature from which on a Frechet distance is more than its bias."""


def fidelity_figures(
    images: Tensor, reference: Reference, features: Tensor | None
) -> dict[str, float]:
    """Return FD, and KID where the reference's features are known besides its statistics."""
    found = {"fd": _fd(images, reference)}
    if features is not None:
        found["kid"] = kernel_distance(images, features)
    return found


def _fd(images: Tensor, reference: Reference) -> float:
    return frechet_distance(Reference.of(images), reference)


def spread_figures(
    images: Tensor, reference: Reference, features: Tensor | None
) -> dict[str, float]:
    """Return half the 95 % intervals of FD and KID, and precision, recall, density and coverage.

    A figure is left out where it needs more samples, or the reference's features and they are not
    known. From fewer than `LEAST` samples a feature, what FD loses with each sample is most of it,
    and tells nothing of its spread.
    """
    widths: dict[str, float | None] = {}
    if len(images) >= LEAST * images.shape[1]:
        widths["fd_interval"] = half_interval(images, partial(_fd, reference=reference))
    if features is not None:
        widths["kid_interval"] = half_interval(images, partial(kernel_distance, b=features))
    found = {name: width for name, width in widths.items() if width is not None}
    return found | ({} if features is None else manifold_figures(images, features))


def text_figures(images: Tensor, eye: Features, lines: Sequence[str]) -> dict[str, float]:
    """Return figures of how pictures fit their captions, in the features of a CLIP model."""
    texts = eye.texts(lines)
    normal = torch.nn.functional.normalize(images, dim=-1)
    return {
        "text_image_score": eye.score(images, texts),
        "retrieval_top1": _retrieval(normal, texts, lines),
        **diversity(normal, lines),
    }


def _retrieval(images: Tensor, texts: Tensor, lines: Sequence[str]) -> float:
    """Return the share of pictures whose own caption is the nearest of all captions."""
    unique = list(dict.fromkeys(lines))
    first = [lines.index(line) for line in unique]
    bank = torch.nn.functional.normalize(texts[first], dim=-1)
    nearest = (images @ bank.T).argmax(1)
    own = torch.tensor([unique.index(line) for line in lines])
    return (nearest == own).double().mean().item()


def diversity(images: Tensor, lines: Sequence[str]) -> dict[str, float]:
    """Return mean 100 (1 - cosine) over pairs of pictures of one caption; {} without any pair."""
    alike: dict[str, list[int]] = {}
    for i, line in enumerate(lines):
        alike.setdefault(line, []).append(i)
    gaps = [
        100 * (1 - images[i] @ images[j]) for of in alike.values() for i, j in combinations(of, 2)
    ]
    return {"diversity": torch.stack(gaps).mean().item()} if gaps else {}


def errors(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean squared error (N,) of each pair of pictures, scaled to [0, 1]."""
    return np.array(
        [
            np.square((a.astype(np.float64) - b) / 255).mean()
            for a, b in zip(ours, theirs, strict=True)
        ]
    )


def to_teacher_figures(
    ours: NDArray[np.uint8], theirs: NDArray[np.uint8], eye: Eye
) -> dict[str, Any]:
    """Return distances of pictures to the teacher's of the same noise and condition.

    Returns:
        rmse: Root mean square error over all pictures, scaled to [0, 1].
        psnr: The error as PSNR in dB; `decibels.EQUAL_DB` where every pixel is equal.
        perceptual: `Features.distance`, where the features are a CLIP model's.
        samples: Number of pairs.
    """
    rmse = math.sqrt(errors(ours, theirs).mean())
    seen = {"perceptual": eye.distance(ours, theirs)} if isinstance(eye, Features) else {}
    return {"rmse": rmse, "psnr": psnr(rmse), **seen, "samples": len(ours)}


def ratios(mine: Figures, first: Figures) -> None:
    """Add ratios to the teacher's figures; a ratio is None where the teacher's is not above 0."""
    for key, name in (("fd", "fd_ratio"), ("text_image_score", "text_image_ratio")):
        if key in mine:
            mine[name] = _over(mine[key], first[key])
    if "diversity" in mine and first.get("diversity"):
        mine["diversity_ratio"] = _over(mine["diversity"], first["diversity"])


def _over(a: float, b: float) -> float | None:
    return a / b if b > 0 else None


def check_finite(figures: Any, where: str = "") -> None:
    """Raise a FloatingPointError that names the first figure that is not a finite number."""
    if isinstance(figures, dict):
        for key, value in figures.items():
            check_finite(value, f"{where}.{key}" if where else str(key))
    elif isinstance(figures, list | tuple):
        for index, value in enumerate(figures):
            check_finite(value, f"{where}.{index}")
    elif isinstance(figures, float) and not math.isfinite(figures):
        raise FloatingPointError(f"{where} is {figures}: no figure is written that is no number")

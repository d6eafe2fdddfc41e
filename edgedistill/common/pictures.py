"""Grids of sample pictures, and scatter plots of points in the plane."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgedistill.common.files import atomic_file

__all__ = ["grid", "save_samples", "scatter", "to_uint8"]

mpl.use("Agg")
mpl.rcParams["text.parse_math"] = False  # users' names may have dollar signs
GAP, PAPER = 2, 224


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Convert pictures (N, 3, H, W) in [-1, 1] to (N, H, W, 3) bytes."""
    bytes_ = (images.detach().float().cpu() * 127.5 + 127.5).round().clamp(0, 255)
    return np.ascontiguousarray(bytes_.permute(0, 2, 3, 1).numpy().astype(np.uint8))


def grid(images: NDArray[np.uint8], columns: int = 8) -> Image.Image:
    """Arrange pictures (N, H, W, 3) in a grid with frames; a single one is left as it is."""
    n, height, width, _ = images.shape
    if n == 1:
        return Image.fromarray(images[0])
    columns = min(columns, n)
    rows = -(-n // columns)
    shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    paper = np.full(shape, PAPER, np.uint8)
    for i, image in enumerate(images):
        y, x = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        paper[y : y + height, x : x + width] = image
    return Image.fromarray(paper)


def scatter(
    points: NDArray[np.float32],
    reference: NDArray[np.float32] | None = None,
    extent: float | None = None,
) -> Figure:
    """Plot points (N, D) over reference points in grey: their first two numbers, or one on a line.

    Args:
        points: Samples to plot.
        reference: Samples of the true distribution.
        extent: Largest number on the axes; None fits the points.
    """
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    if reference is not None:
        axes.scatter(*_plane(reference), s=3, c="0.8", label="true")
    axes.scatter(*_plane(points), s=3, c="tab:blue", alpha=0.6, label="drawn")
    if extent is not None:
        axes.set_xlim(-extent, extent)
        axes.set_ylim(-extent, extent)
    axes.set_aspect("equal", adjustable="datalim")  # a single point would get a sliver
    axes.legend(loc="upper right", markerscale=3)
    return figure


def _plane(points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x = points[:, 0]
    return x, points[:, 1] if points.shape[1] > 1 else np.zeros_like(x)


def save_samples(
    path: Path, decoded: Tensor, reference: NDArray[np.float32] | None = None
) -> None:
    """Write decoded samples as a PNG: a picture grid, or a scatter plot of points."""
    with atomic_file(path) as made:
        if decoded.ndim == 4:
            grid(to_uint8(decoded)).save(made)
        else:
            scatter(decoded.detach().cpu().float().numpy(), reference).savefig(made, dpi=110)

"""The noise of a picture, from integers alone, so that any language can draw the same picture.

Picture i of seed s uses the counter-based generator Philox4x64-10 (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3") with key (s, i). Blocks are drawn at counters (1, 0, 0, 0),
(2, 0, 0, 0), ... and give four 64-bit words each, in order: w_0, w_1, w_2, ...

    u_k    = ((w_k >> 11) + 0.5) * 2^-53                      in (0, 1), float64
    z_2j   = sqrt(-2 ln u_2j) * cos(2 pi u_2j+1)              Box-Muller, float64
    z_2j+1 = sqrt(-2 ln u_2j) * sin(2 pi u_2j+1)              then rounded to float32

z_0, z_1, ... fill the tensors x_T, noise_1, ... one after another in row-major order, each of the
size that its step uses. A picture's noise depends on (s, i) only: not on the batch, nor on how
many steps follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

__all__ = ["noise", "normals"]


def normals(seed: int, index: int, count: int) -> NDArray[np.float32]:
    """Return the first `count` normals z_k of picture `index` of `seed`, (count,) float32.

    Raises:
        ValueError: If seed or index is outside [0, 2^64).
    """
    if not (0 <= seed < 2**64 and 0 <= index < 2**64):
        raise ValueError(f"seed and index must lie in [0, 2**64), not {seed} and {index}")
    key = np.array([seed, index], np.uint64)
    words = np.random.Philox(key=key).random_raw(2 * ((count + 1) // 2))
    u = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(u[0::2]))
    angle = 2.0 * math.pi * u[1::2]
    z = np.empty(len(words), np.float32)
    z[0::2] = radius * np.cos(angle)
    z[1::2] = radius * np.sin(angle)
    return z[:count]


def noise(
    seed: int, first: int, count: int, shapes: Sequence[tuple[int, ...]]
) -> list[NDArray[np.float32]]:
    """Return noise of pictures first .. first + count - 1, (count, *shape) for each shape."""
    sizes = [math.prod(shape) for shape in shapes]
    out = [np.empty((count, size), np.float32) for size in sizes]
    for row in range(count):
        z = normals(seed, first + row, sum(sizes))
        for tensor, end in zip(out, accumulate(sizes), strict=True):
            tensor[row] = z[end - tensor.shape[1] : end]
    return [tensor.reshape(count, *shape) for tensor, shape in zip(out, shapes, strict=True)]

"""Operators that unpack compressed weights, on numpy arrays as they are stored.

In iOS 16's form a palette has one table and its indices are packed bytes; in iOS 18's the indices
have the shape of the weight, and every block may have a table or a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill_export.mil.values import BY_NAME, Stored, unpack

__all__ = ["CONSTEXPR"]

Array = NDArray[Any]


def _affine_dequantize(
    *, quantized_data: Array, zero_point: Array, scale: Array, axis: Array
) -> Array:
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1
    shifted = quantized_data.astype(np.float32) - zero_point.astype(np.float32).reshape(shape)
    return shifted * scale.astype(np.float32).reshape(shape)


def _blockwise_shift_scale(*, data: Array, scale: Array, offset: Array | None = None) -> Array:
    result = data.astype(np.float32)
    if offset is not None:
        result -= _spread(offset.astype(np.float32), data.shape)
    return result * _spread(scale.astype(np.float32), data.shape)


def _lut_to_dense(
    *,
    indices: Array,
    lut: Array,
    shape: Array | None = None,
    vector_axis: Array | None = None,
) -> Array:
    if shape is not None:
        bits = Stored("packed", np.uint8, int(lut.size - 1).bit_length())
        full = tuple(int(size) for size in shape)
        dense: Array = lut[unpack(indices.tobytes(), bits, full)]
        return dense
    if lut.shape[-1] != 1:
        raise ValueError(f"constexpr_lut_to_dense: tables of {lut.shape[-1]}-vectors")
    tables = lut.reshape(-1, lut.shape[-2])
    which = np.arange(len(tables)).reshape(lut.shape[:-2])
    weight: Array = tables[_spread(which, indices.shape), indices]
    return weight


def _cast(*, source_val: Array, output_dtype: str) -> Array:
    return source_val.astype(BY_NAME[output_dtype].numpy)


def _spread(blocks: Array, shape: tuple[int, ...]) -> Array:
    """Repeat every entry over its block."""
    for axis, size in enumerate(shape):
        if blocks.shape[axis] not in (1, size):
            blocks = blocks.repeat(size // blocks.shape[axis], axis)
    assert prod(np.broadcast_shapes(blocks.shape, shape)) == prod(shape)
    return blocks


CONSTEXPR: Mapping[str, Callable[..., Array]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
}
"""Functions by operator, called with its parameters by name."""

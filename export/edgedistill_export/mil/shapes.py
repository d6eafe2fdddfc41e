"""Operators that move values or change their type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SHAPES"]

_PADDING = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}


def _cast(*, x: Tensor, dtype: str) -> Tensor:
    # The interpreter rounds every result to the declared type, so nothing is left to do.
    return x


def _concat(
    *, values: Sequence[Tensor], axis: Tensor, interleave: Tensor | bool = False
) -> Tensor:
    along = int(axis) % values[0].ndim
    if interleave:
        return torch.stack(list(values), along + 1).flatten(along, along + 1)
    return torch.cat(list(values), along)


def _crop(*, x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    (top, bottom), (left, right) = crop_height.tolist(), crop_width.tolist()
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _expand_dims(*, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _gather(
    *,
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    if batch_dims:
        raise ValueError(f"gather: batch_dims {int(batch_dims)} is not run here")
    along = int(axis) % x.ndim
    taken = x.index_select(along, indices.reshape(-1))
    return taken.reshape(*x.shape[:along], *indices.shape, *x.shape[along + 1 :])


def _gather_along_axis(
    *,
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    along = int(axis)
    return x.take_along_dim(indices % x.shape[along], along)


def _gather_nd(
    *,
    x: Tensor,
    indices: Tensor,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    rank = indices.ndim - 1
    batch = [
        torch.arange(x.shape[axis]).reshape([-1 if axis == at else 1 for at in range(rank)])
        for axis in range(int(batch_dims))
    ]
    return x[(*batch, *indices.unbind(-1))]


def _pad(
    *, x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0
) -> Tensor:
    sides = pad.reshape(-1, 2).flip(0).reshape(-1).tolist()
    if mode == "constant":
        return F.pad(x, sides, value=float(constant_val))
    # torch pads by copies at most the last three of four or more axes.
    while sides[-2:] == [0, 0]:
        sides = sides[:-2]
    return F.pad(x, sides, mode=_PADDING[mode])


def _reshape(*, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    for axis, size in enumerate(sizes):
        if size == 0:  # 0 means the size of that axis of x, counted from the last
            back = len(sizes) - axis
            sizes[axis] = x.shape[-back] if back <= x.ndim else 1
    return x.reshape(sizes)


def _slice_by_index(
    *,
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    def flags(mask: Tensor | None) -> list[bool]:
        return [False] * x.ndim if mask is None else mask.tolist()

    steps = [1] * x.ndim if stride is None else stride.tolist()
    open_begin, open_end, squeezed = flags(begin_mask), flags(end_mask), flags(squeeze_mask)
    index: list[int | slice] = []
    for axis, (first, last, step) in enumerate(
        zip(begin.tolist(), end.tolist(), steps, strict=True)
    ):
        span = slice(None if open_begin[axis] else first, None if open_end[axis] else last, step)
        index.append(first if squeezed[axis] else span)
    # torch has no negative steps.
    return torch.from_numpy(x.numpy()[tuple(index)].copy())


def _slice_by_size(*, x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    for axis, (first, count) in enumerate(zip(begin.tolist(), size.tolist(), strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def _split(
    *,
    x: Tensor,
    axis: Tensor,
    num_splits: Tensor | None = None,
    split_sizes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    along = int(axis)
    if split_sizes is not None:
        return torch.split(x, split_sizes.tolist(), along)
    assert num_splits is not None
    return torch.split(x, x.shape[along] // int(num_splits), along)


def _squeeze(*, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def _stack(*, values: Sequence[Tensor], axis: Tensor) -> Tensor:
    return torch.stack(list(values), int(axis))


def _tile(*, x: Tensor, reps: Tensor) -> Tensor:
    return x.tile(reps.tolist())


def _transpose(*, x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(perm.tolist())


SHAPES: Mapping[str, Callable[..., Any]] = {
    "cast": _cast,
    "concat": _concat,
    "crop": _crop,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "identity": lambda *, x: x,
    "pad": _pad,
    "pixel_shuffle": lambda *, x, upscale_factor: F.pixel_shuffle(x, int(upscale_factor)),
    "pixel_unshuffle": lambda *, x, downscale_factor: F.pixel_unshuffle(x, int(downscale_factor)),
    "reshape": _reshape,
    "reverse": lambda *, x, axes: x.flip(axes.tolist()),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
"""Functions by operator, called with its parameters by name, floats in float32 and integers in
int64."""

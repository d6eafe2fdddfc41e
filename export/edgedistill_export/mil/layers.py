"""Operators with weights, norms, attention and upsampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LAYERS"]

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
"""Transposed convolutions by rank of the input."""


def _batch_norm(
    *,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


def _avg_pool(*, exclude_padding_from_average: Tensor | bool = False, **given: Any) -> Tensor:
    def pool(x: Tensor, sizes: list[int], steps: list[int], mask: Tensor) -> Tensor:
        average = _MEANS[x.ndim](x, sizes, steps)
        return average / _MEANS[x.ndim](mask, sizes, steps) if exclude else average

    exclude = bool(exclude_padding_from_average)
    return _pool(pool, 0.0, **given)


def _max_pool(**given: Any) -> Tensor:
    return _pool(lambda x, sizes, steps, _: _MAXIMA[x.ndim](x, sizes, steps), -torch.inf, **given)


def _pool(
    function: Callable[..., Tensor],
    filler: float,
    *,
    x: Tensor,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    if ceil_mode:
        raise ValueError("pooling: ceil_mode is not run here")
    sizes = kernel_sizes.tolist()
    steps = [1] * len(sizes) if strides is None else strides.tolist()
    sides = _sides(x, sizes, steps, [1] * len(sizes), pad_type, pad)
    mask = F.pad(torch.ones_like(x), sides)
    return function(F.pad(x, sides, value=filler), sizes, steps, mask)


_MEANS: Mapping[int, Callable[..., Tensor]] = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
_MAXIMA: Mapping[int, Callable[..., Tensor]] = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}


def _conv(
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    spatial = x.ndim - 2
    steps = [1] * spatial if strides is None else strides.tolist()
    holes = [1] * spatial if dilations is None else dilations.tolist()
    x = F.pad(x, _sides(x, weight.shape[2:], steps, holes, pad_type, pad))
    return _CONVOLUTIONS[x.ndim](x, weight, bias, steps, 0, holes, int(groups))


def _conv_transpose(
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    output_shape: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    spatial = x.ndim - 2
    steps = [1] * spatial if strides is None else strides.tolist()
    holes = [1] * spatial if dilations is None else dilations.tolist()
    if pad_type not in ("custom", "valid"):
        raise ValueError(f"conv_transpose: pad_type {pad_type!r} is not run here")
    sides = [0] * 2 * spatial if pad is None or pad_type == "valid" else pad.tolist()
    whole = _TRANSPOSED[x.ndim](x, weight, bias, steps, 0, 0, int(groups), holes)
    sizes = whole.shape[2:] if output_shape is None else output_shape.tolist()[2:]
    # Padding is cut from the result; the output shape may need more than is left.
    for axis, (before, after) in enumerate(zip(sides[::2], sides[1::2], strict=True)):
        left = whole.shape[axis + 2] - before - after
        size = left if output_shape is None else sizes[axis]
        end = min(whole.shape[axis + 2], before + size)
        whole = whole.narrow(axis + 2, before, end - before)
    return whole


def _sides(
    x: Tensor,
    kernel: Sequence[int],
    steps: list[int],
    holes: list[int],
    pad_type: str,
    pad: Tensor | None,
) -> list[int]:
    """Return the padding in the form of F.pad."""
    if pad_type == "custom":
        assert pad is not None
        sides = [(before, after) for before, after in pad.reshape(-1, 2).tolist()]
    else:
        spans = zip(x.shape[2:], kernel, steps, holes, strict=True)
        sides = [PADDING[pad_type](*span) for span in spans]
    return list(chain.from_iterable(reversed(sides)))


def _lacking(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Return the padding after which an output has ceil(size / stride) values."""
    outputs = -(-size // stride)
    return max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - size)


def _same(*span: int) -> tuple[int, int]:
    lacking = _lacking(*span)
    return lacking // 2, lacking - lacking // 2


def _same_lower(*span: int) -> tuple[int, int]:
    before, after = _same(*span)
    return after, before


PADDING: Mapping[str, Callable[..., tuple[int, int]]] = {
    "valid": lambda *span: (0, 0),
    "same": _same,
    "same_lower": _same_lower,
}
"""Functions by pad_type: (size, kernel, stride, dilation) -> padding before and after."""


def _instance_norm(
    *,
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    return F.instance_norm(x, weight=gamma, bias=beta, eps=float(epsilon))


def _layer_norm(
    *,
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    dims = range(x.ndim) if axes is None else sorted(axis % x.ndim for axis in axes.tolist())
    variance, mean = torch.var_mean(x, list(dims), correction=0, keepdim=True)
    result = (x - mean) / (variance + epsilon).sqrt()
    shape = [x.shape[axis] if axis in dims else 1 for axis in range(x.ndim)]
    if gamma is not None:
        result = result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def _linear(*, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def _matmul(
    *,
    x: Tensor,
    y: Tensor,
    transpose_x: Tensor | bool = False,
    transpose_y: Tensor | bool = False,
) -> Tensor:
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def _scaled_dot_product_attention(
    *, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def _upsample_bilinear(
    *,
    x: Tensor,
    scale_factor_height: Tensor | float = 1,
    scale_factor_width: Tensor | float = 1,
    align_corners: Tensor | bool = True,
) -> Tensor:
    size = _scaled(x, scale_factor_height, scale_factor_width)
    return F.interpolate(x, size, mode="bilinear", align_corners=bool(align_corners))


def _upsample_nearest_neighbor(
    *,
    x: Tensor,
    scale_factor_height: Tensor | float = 1,
    scale_factor_width: Tensor | float = 1,
) -> Tensor:
    return F.interpolate(x, _scaled(x, scale_factor_height, scale_factor_width))


def _scaled(x: Tensor, height: Tensor | float, width: Tensor | float) -> list[int]:
    return [int(x.shape[-2] * float(height)), int(x.shape[-1] * float(width))]


LAYERS: Mapping[str, Callable[..., Any]] = {
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "einsum": lambda *, values, equation: torch.einsum(equation, *values),
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "scaled_dot_product_attention": _scaled_dot_product_attention,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest_neighbor,
}
"""Functions by operator, called with its parameters by name, floats in float32 and integers in
int64."""

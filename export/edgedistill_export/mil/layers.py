"""Operators with weights, norms, attention and upsampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LAYERS"]

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
"""By rank of the input."""


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
    if pad_type == "custom":
        assert pad is not None
        sides = [(before, after) for before, after in pad.reshape(-1, 2).tolist()]
    else:
        spans = zip(x.shape[2:], weight.shape[2:], steps, holes, strict=True)
        sides = [PADDING[pad_type](*span) for span in spans]
    if any(before or after for before, after in sides):
        x = F.pad(x, list(chain.from_iterable(reversed(sides))))
    return _CONVOLUTIONS[x.ndim](x, weight, bias, steps, 0, holes, int(groups))


def _lacking(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Padding after which an output has ceil(size / stride) numbers."""
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
"""By pad_type: (size, kernel, stride, dilation) -> what goes before and after."""


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
    "batch_norm": _batch_norm,
    "conv": _conv,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _scaled_dot_product_attention,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest_neighbor,
}
"""By operator; called with its parameters by name, floats in float32 and integers in int64."""

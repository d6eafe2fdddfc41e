"""Rewrite operators that XNNPACK lacks in terms of those it has.

Otherwise these operators run in ExecuTorch's portable kernels, which use one thread and no vector
instructions, and they cut the graph into pieces between which tensors change their layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn import functional as F

__all__ = ["for_xnnpack"]

_MASKED = -1e9
"""Value added to masked scores; finite, since otherwise a fully masked row would be NaN."""


def for_xnnpack(program: ExportedProgram) -> ExportedProgram:
    """Rewrite the operators of `_TABLE`; others do not change."""
    with torch.no_grad():
        decomposed: ExportedProgram = program.run_decompositions(_TABLE)
    return decomposed


def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Compute means over pixels by pooling, and means over a group's channels by 1x1 convolution.

    Everything stays in the layout of the surrounding convolutions, channels last.
    """
    pixels = x if x.dim() == 4 else x.reshape(*x.shape[:2], -1, 1)
    channels = x.shape[1]
    size = channels // groups
    average = torch.full((channels, size, 1, 1), 1 / size)

    def mean(value: Tensor) -> Tensor:
        return F.conv2d(value.mean((2, 3), keepdim=True), average, groups=groups)

    centred = pixels - mean(pixels)
    scale = torch.rsqrt(mean(centred * centred) + eps)
    if weight is not None:
        scale = scale * weight.view(1, -1, 1, 1)
    result = centred * scale
    if bias is not None:
        result = result + bias.view(1, -1, 1, 1)
    return result.view(x.shape)


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Compute means by matrix products, since XNNPACK averages pictures only."""
    rows = x.flatten(-len(shape))
    average = torch.full((1, rows.shape[-1]), 1 / rows.shape[-1])
    centred = rows - F.linear(rows, average)
    result = (centred * torch.rsqrt(F.linear(centred * centred, average) + eps)).view(x.shape)
    if weight is not None:
        result = result * weight
    return result if bias is None else result + bias


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:  # a tensor, or torch's mark to leave the call
    """Compute softmax of products, without torch's search for fully masked rows."""
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    lead, length = q.shape[:-2], k.shape[-2]
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if is_causal:
        mask = torch.ones(q.shape[-2], length, dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, _MASKED)
    scores = torch.bmm(_matrices(q * scale), _matrices(k).transpose(1, 2))
    if mask is not None:
        scores = _matrices(scores.view(*lead, -1, length) + mask)
    result: Tensor = torch.bmm(scores.softmax(-1), _matrices(v))
    return result.view(*lead, -1, v.shape[-1])


def _matrices(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


def _split(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    length = x.shape[dim]
    return [x.narrow(dim, i, min(size, length - i)) for i in range(0, length, size)]


def _conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    dilation: Sequence[int] = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolve frames in two dimensions, with all frames of a tap's reach as channels."""
    (step, *steps), (pad, *pads), (gap, *gaps) = stride, padding, dilation
    taps = weight.shape[2]
    x = F.pad(x, (0, 0, 0, 0, pad, pad)) if pad else x
    count = (x.shape[2] - gap * (taps - 1) - 1) // step + 1
    last = step * (count - 1) + 1
    reach = [x[:, :, first : first + last : step] for first in range(0, gap * taps, gap)]
    # (N, C, taps, frames, H, W) -> (N frames, C taps, H, W)
    pictures = torch.stack(reach, 2).permute(0, 3, 1, 2, 4, 5).flatten(0, 1).flatten(1, 2)
    result = F.conv2d(pictures, weight.flatten(1, 2), bias, steps, pads, gaps, groups)
    return result.view(len(x), count, *result.shape[1:]).transpose(1, 2)


def _vector_norm(
    x: Tensor,
    order: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    **given: Any,
) -> Any:
    """Sum squares along one axis by a matrix product, since XNNPACK sums pictures only."""
    if order != 2 or dim is None or len(dim) != 1 or given.get("dtype"):
        return NotImplemented
    rows = x.movedim(dim[0], -1)
    ones = torch.ones(1, rows.shape[-1])
    norm = F.linear(rows * rows, ones).sqrt().movedim(-1, dim[0])
    return norm if keepdim else norm.squeeze(dim[0])


def _where(chosen: Tensor, x: Tensor | float, other: Tensor | float) -> Any:
    """Choose between tensors in one layout, which the portable kernel needs."""
    values = [v if isinstance(v, Tensor) else torch.full((), v) for v in (x, other)]
    given = (chosen, x, other)
    if all(isinstance(v, Tensor) and v.is_contiguous() for v in given):
        return NotImplemented
    return torch.where(chosen.contiguous(), *(value.contiguous() for value in values))


def _empty_permuted(size: Sequence[int], layout: Sequence[int], **given: Any) -> Tensor:
    # A tensor in another order is no core operator of torch's; what stands in it does not matter.
    return torch.zeros(size, dtype=given.get("dtype"))


def _empty_like(x: Tensor, **given: Any) -> Tensor:
    return torch.zeros(x.shape, dtype=given.get("dtype") or x.dtype)


def _new_empty(x: Tensor, size: Sequence[int], **given: Any) -> Tensor:
    return torch.zeros(size, dtype=given.get("dtype") or x.dtype)


_TABLE: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.conv3d.default: _conv3d,
    torch.ops.aten.empty_like.default: _empty_like,
    torch.ops.aten.empty_permuted.default: _empty_permuted,
    torch.ops.aten.group_norm.default: _group_norm,
    torch.ops.aten.layer_norm.default: _layer_norm,
    torch.ops.aten.linalg_vector_norm.default: _vector_norm,
    torch.ops.aten.new_empty.default: _new_empty,
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
    torch.ops.aten.split.Tensor: _split,
    torch.ops.aten.where.Scalar: _where,
    torch.ops.aten.where.ScalarOther: _where,
    torch.ops.aten.where.ScalarSelf: _where,
    torch.ops.aten.where.self: _where,
}

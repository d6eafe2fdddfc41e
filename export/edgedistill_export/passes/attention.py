"""Translate torch's scaled dot-product attention to few ONNX operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset20 as op

__all__ = ["TRANSLATIONS"]


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translate `torch.nn.functional.scaled_dot_product_attention`.

    The tracer's own translation scales keys as well as queries, and transposes the keys by two
    reshapes around a transposition. Engines fuse a plain softmax(scale q k^T + mask) v: it has a
    third fewer nodes, of which ONNX Runtime and OpenVINO make one or two kernels.
    """
    if enable_gqa and query.shape[1] != key.shape[1]:
        times = query.shape[1] // key.shape[1]
        key, value = _repeat_heads(key, times), _repeat_heads(value, times)
    axes = list(range(len(query.shape)))
    axes[-2:] = axes[:-3:-1]
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = op.MatMul(op.Mul(query, _constant(factor, query)), op.Transpose(key, perm=axes))
    if is_causal:
        causal = np.tri(query.shape[-2], key.shape[-2], dtype=bool)
        attn_mask = op.Constant(value=ir.tensor(causal))
    if attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    if attn_mask.dtype != ir.DataType.BOOL and not is_causal:
        return op.MatMul(op.Softmax(op.Add(scores, attn_mask), axis=-1), value)
    none = _constant(0.0, query)
    scores = op.Where(attn_mask, scores, _constant(-math.inf, query))
    shares = op.Softmax(scores, axis=-1)
    if not is_causal:  # a row without any key is zero, as in torch
        shares = op.Where(op.IsNaN(shares), none, shares)
    return op.MatMul(shares, value)


def _repeat_heads(heads: Any, times: int) -> Any:
    """Repeat each head (N, heads, length, width) `times` times in a row, for grouped queries."""
    _, count, length, width = heads.shape
    copies = op.Expand(op.Unsqueeze(heads, [2]), [1, 1, times, 1, 1])
    return op.Reshape(copies, [0, count * times, length, width])


def _constant(value: float, like: Any) -> Any:
    return op.Constant(value=ir.tensor(value, dtype=like.dtype))


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
}
"""Translations for `torch.onnx.export`, by torch's operator."""

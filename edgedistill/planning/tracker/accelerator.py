"""Fused attention and autocast for the meta device, which has neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["LOW", "LOW_PRECISION", "WIDE", "Accelerator", "differentiable_twice"]

LOW_PRECISION = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Low precision of autocast, by the trainer's name of a precision."""

LOW = {
    *(F.linear, torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d),
    *(torch.matmul, torch.bmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__),
    F.scaled_dot_product_attention,
}
"""Functions that autocast runs in the low precision."""

WIDE = {
    *(F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax),
    *(F.mse_loss, F.l1_loss, torch.exp, torch.log, torch.pow, Tensor.pow, Tensor.exp),
}
"""Functions that autocast runs in float32 (pytorch.org/docs/stable/amp.html, CUDA's lists, as far
as denoisers and losses use them)."""


class Accelerator(TorchFunctionMode):
    """A mode in which the meta device computes as an accelerator: fused attention, autocast.

    Without it, the meta device would hold the scores of every attention.

    Args:
        dtype: Low precision of autocast; None disables it.

    Attributes:
        casts: Cast weights. As in autocast, a weight is cast once an update, and the copy lives
            until the update's end.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        self.casts: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.dtype is not None and (func in LOW or func in WIDE):
            dtype = self.dtype if func in LOW else torch.float32
            args = [self._cast(value, dtype) for value in args]
            kwargs = {name: self._cast(value, dtype) for name, value in kwargs.items()}
        return STAND_INS.get(func, func)(*args, **kwargs)

    def forget(self) -> None:
        """Drop the cast weights, as autocast does when an update ends."""
        self.casts.clear()

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (value.is_leaf and value.requires_grad and torch.is_grad_enabled()):
            return value.to(dtype)
        if id(value) not in self.casts:
            self.casts[id(value)] = value.to(dtype)
        return self.casts[id(value)]


def differentiable_twice() -> bool:
    """Whether a method has disabled fused attention, since it cannot be differentiated twice."""
    return not torch.backends.cuda.mem_efficient_sdp_enabled()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **others: Any,
) -> Tensor:
    if differentiable_twice() or attn_mask is not None or others.get("enable_gqa"):
        result: Tensor = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, **others
        )
        return result
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    output: Tensor = fused(
        query,
        key,
        value,
        None,
        torch.is_grad_enabled(),
        dropout_p,
        is_causal,
        scale=others.get("scale"),
    )[0]
    return output


def _quantize(value: Tensor, *others: Any) -> Tensor:
    """Return what fake quantization leaves: the result, and a bit mask for the backward pass."""
    return torch.where(torch.empty_like(value, dtype=torch.bool), value, value)


STAND_INS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    torch.fake_quantize_per_tensor_affine: _quantize,
    torch.fake_quantize_per_channel_affine: _quantize,
}
"""Replacements of functions that the meta device lacks, or computes unlike accelerators."""

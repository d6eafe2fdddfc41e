"""Element-wise operators, reductions and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ELEMENTWISE"]

Operator = Callable[..., Any]


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda *, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda *, x, y: function(x, y)


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def reduce(*, x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Any:
        dims = list(range(x.ndim)) if axes is None else axes.tolist()
        return function(x, dim=dims, keepdim=bool(keep_dims))

    return reduce


def _place(function: Callable[..., Tensor]) -> Operator:
    def find(
        *,
        x: Tensor,
        axis: Tensor | int = -1,
        keep_dims: Tensor | bool = False,
        output_dtype: str = "int32",
    ) -> Tensor:
        return function(x, int(axis), keepdim=bool(keep_dims))

    return find


def _clip(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return x.clamp(alpha, beta)


def _cumsum(
    *,
    x: Tensor,
    axis: Tensor | int = 0,
    exclusive: Tensor | bool = False,
    reverse: Tensor | bool = False,
) -> Tensor:
    x = x.flip(int(axis)) if reverse else x
    result = x.cumsum(int(axis)) - x if exclusive else x.cumsum(int(axis))
    return result.flip(int(axis)) if reverse else result


def _elu(*, x: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
    return torch.where(x >= 0, x, alpha * torch.expm1(x))


def _gelu(*, x: Tensor, mode: str = "EXACT") -> Tensor:
    return GELU[mode](x)


def _inverse(*, x: Tensor, epsilon: Tensor | float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


def _leaky_relu(*, x: Tensor, alpha: Tensor | float = 0.01) -> Tensor:
    return torch.where(x >= 0, x, alpha * x)


def _log(*, x: Tensor, epsilon: Tensor | float = 1e-45) -> Tensor:
    return (x + epsilon).log()


def _rsqrt(*, x: Tensor, epsilon: Tensor | float = 1e-12) -> Tensor:
    return (x + epsilon).rsqrt()


def _select(*, cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.bool(), a, b)


def _sum_square(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.square().sum(dim, keepdim=keepdim)


def _softmax(*, x: Tensor, axis: Tensor | int = -1) -> Tensor:
    return x.softmax(int(axis))


GELU: Mapping[str, Callable[[Tensor], Tensor]] = {
    "EXACT": F.gelu,
    "TANH_APPROXIMATION": lambda x: F.gelu(x, approximate="tanh"),
    "SIGMOID_APPROXIMATION": lambda x: x * (1.702 * x).sigmoid(),
}

ELEMENTWISE: Mapping[str, Operator] = {
    "abs": _unary(torch.abs),
    "add": _binary(torch.add),
    "ceil": _unary(torch.ceil),
    "clip": _clip,
    "cos": _unary(torch.cos),
    "cumsum": _cumsum,
    "elu": _elu,
    "equal": _binary(torch.eq),
    "erf": _unary(torch.erf),
    "exp2": _unary(torch.exp2),
    "exp": _unary(torch.exp),
    "floor": _unary(torch.floor),
    "floor_div": _binary(torch.floor_divide),
    "gelu": _gelu,
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "inverse": _inverse,
    "leaky_relu": _leaky_relu,
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "log": _log,
    "logical_and": _binary(torch.logical_and),
    "logical_not": _unary(torch.logical_not),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mod": _binary(torch.remainder),
    "mul": _binary(torch.mul),
    "not_equal": _binary(torch.ne),
    "pow": _binary(torch.pow),
    "real_div": _binary(torch.true_divide),
    "reduce_argmax": _place(torch.argmax),
    "reduce_argmin": _place(torch.argmin),
    "reduce_l1_norm": _reduction(partial(torch.linalg.vector_norm, ord=1)),
    "reduce_l2_norm": _reduction(torch.linalg.vector_norm),
    "reduce_log_sum_exp": _reduction(torch.logsumexp),
    "reduce_max": _reduction(torch.amax),
    "reduce_mean": _reduction(torch.mean),
    "reduce_min": _reduction(torch.amin),
    "reduce_sum": _reduction(torch.sum),
    "reduce_sum_square": _reduction(_sum_square),
    "relu": _unary(torch.relu),
    "round": _unary(torch.round),
    "rsqrt": _rsqrt,
    "select": _select,
    "sigmoid": _unary(torch.sigmoid),
    "sign": _unary(torch.sign),
    "silu": _unary(F.silu),
    "sin": _unary(torch.sin),
    "softmax": _softmax,
    "softplus": _unary(F.softplus),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "sub": _binary(torch.sub),
    "tanh": _unary(torch.tanh),
}
"""Functions by operator, called with its parameters by name, floats in float32 and integers in
int64."""

"""From a network to a torch program of operators that coremltools converts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from edgedistill.teachers.base import ExportGraph
from edgedistill_export.mil.sdk import coremltools, quiet
from edgedistill_export.targets.coreml_ranks import drop_batch_axis

__all__ = ["DECOMPOSITIONS", "lower"]


def _logical(operator: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Any]:
    """Of truths; Core ML has no operator on bits."""
    return lambda x, y: operator(x, y) if x.dtype == y.dtype == torch.bool else NotImplemented


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    if approximate == "none":
        return NotImplemented
    # The converter reads no keyword and would make it exact; it knows this form, and fuses it.
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    # The converter spells the variance out, and in float16 the square of anything over 255 is
    # infinite. Every group as one channel is an operator of Core ML.
    grouped = x.reshape(len(x), groups, -1, x.shape[-1] if x.ndim > 2 else 1)
    normed = torch.instance_norm(grouped, None, None, None, None, True, 0.0, eps, False)
    result = normed.reshape(x.shape)
    shape = (-1, *[1] * (x.ndim - 2))
    if weight is not None:
        result = result * weight.reshape(shape)
    return result if bias is None else result + bias.reshape(shape)


def _rms_norm(
    x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    # The converter wants the last two named.
    dims = list(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    result = x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
    return result if weight is None else result * weight


def _slice_scatter(
    x: Tensor,
    source: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor:
    # The converter would scatter, which the Neural Engine cannot.
    dim, size = dim % x.ndim, x.shape[dim]
    written = range(*slice(start, end, step).indices(size))
    if not written:
        return x.clone()
    if step > 1 and len(written) * step == size:  # a column of a matrix of `step` columns
        rows = x.reshape(*x.shape[:dim], -1, step, *x.shape[dim + 1 :])
        columns = list(rows.unbind(dim + 1))
        columns[written[0]] = source
        return torch.stack(columns, dim + 1).flatten(dim, dim + 1)
    pieces = list(torch.split(x, 1, dim))
    for index, piece in zip(written, torch.split(source, 1, dim), strict=True):
        pieces[index] = piece
    if step == 1:
        after = written[-1] + 1
        pieces = [x.narrow(dim, 0, written[0]), source, x.narrow(dim, after, size - after)]
    return torch.cat(pieces, dim)


def _nearest_exact(x: Tensor, size: Any, scales: Any) -> Any:
    wanted = size or [int(n * scale) for n, scale in zip(x.shape[2:], scales, strict=True)]
    if any(new % old for new, old in zip(wanted, x.shape[2:], strict=True)):
        return NotImplemented
    # By whole factors it is the same as the plain one, which is an operator of Core ML.
    return torch.ops.aten.upsample_nearest2d.vec(x, size, scales)


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    torch.ops.aten._upsample_nearest_exact2d.vec: _nearest_exact,
    torch.ops.aten.alias.default: lambda x: x,
    torch.ops.aten.bitwise_or.Tensor: _logical(torch.logical_or),
    torch.ops.aten.bitwise_xor.Tensor: _logical(torch.logical_xor),
    torch.ops.aten.gelu.default: _gelu,
    torch.ops.aten.group_norm.default: _group_norm,
    torch.ops.aten.rms_norm.default: _rms_norm,
    torch.ops.aten.slice_scatter.default: _slice_scatter,
}
"""What the converter gets wrong or makes slow, in torch operators that it gets right."""


def lower(graph: ExportGraph, name: str) -> Any:
    """Export a network with torch, a batch of one, in operators that coremltools has.

    It has torch's large ones (group norm, attention), so only what it lacks is taken apart, by
    torch's own table.

    Args:
        graph: The network with example inputs.
        name: Of the network, for messages.

    Raises:
        ValueError: If an operator is left that coremltools lacks.
    """
    inputs = {key: tensor[:1].clone() for key, tensor in graph.inputs.items()}
    table = dict(DECOMPOSITIONS)
    known: Mapping[Any, Any] = torch.export.default_decompositions()
    with torch.no_grad(), quiet():
        program = torch.export.export(graph.module.eval(), (), kwargs=inputs)
        program = program.run_decompositions(dict(table))
        taken: set[Any] = set()
        while more := _lacking(program) & known.keys() - taken:
            taken |= more
            table |= {operator: known[operator] for operator in more}
            program = program.run_decompositions(dict(table))
    drop_batch_axis(program.graph)
    if left := _lacking(program):
        raise ValueError(
            f"{name}: coremltools {coremltools.__version__} has no conversion for "
            f"{', '.join(sorted(map(str, left)))}, nor has torch a decomposition"
        )
    return program


def _lacking(program: Any) -> set[Any]:
    """Operators of a program that the converter has no function for."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return {call.target for call in calls if not _is_known(call)}


def _is_known(call: Any) -> bool:
    from coremltools.converters.mil.frontend.torch import is_torch_fx_node_supported

    # Asked about names such as __and__, it would take them for operators that work in place.
    name = call.target.__name__.partition(".")[0]
    return not name.endswith("_") and is_torch_fx_node_supported(call)

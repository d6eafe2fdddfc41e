"""Drop the batch axis, which is 1, of tensors with more axes than Core ML supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.fx import Graph, Node, map_arg

__all__ = ["MAX_RANK", "drop_batch_axis"]

MAX_RANK = 5
"""Largest rank of tensors: Core ML supports at most 5, according to coremltools."""

aten = torch.ops.aten


def drop_batch_axis(graph: Graph) -> None:
    """Rewrite, in place, operators on more than `MAX_RANK` axes of which the first is 1.

    Video decoders have such operators to interleave frames. Where a linked operator is neither in
    `SHIFTED` nor pointwise, nothing is changed: coremltools can split some, and names the others.
    """
    chosen = _chosen(graph)
    whole = [node for node in chosen if node.target in VIEWS and not _is_high(node)]
    without = chosen.keys() - set(whole)
    for node, shifted in chosen.items():
        keep = without | set(node.all_input_nodes) if node.target in VIEWS else without
        with graph.inserting_before(node):
            node.args = map_arg(shifted, partial(_without, keep))
    for node in without:
        high, node.meta["val"] = _is_high(node), node.meta["val"].squeeze(0)
        users = [user for user in node.users if user not in chosen]
        if users and not high:
            with graph.inserting_after(node):
                restored = _call(graph, aten.unsqueeze.default, node)
            for user in users:
                user.replace_input_with(node, restored)


def _chosen(graph: Graph) -> dict[Node, tuple[Any, ...]]:
    """Return the operators to rewrite, with arguments for inputs without their first axis."""
    found = {}
    for node in graph.nodes:
        if any(map(_is_high, (node, *node.all_input_nodes))) and (args := _shifted(node)):
            found[node] = args
    while lonely := [node for node in found if not _linked(node) <= found.keys()]:
        for node in lonely:
            del found[node]
    return found


def _is_high(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim > MAX_RANK


def _linked(node: Node) -> set[Node]:
    """Return the operators that must be rewritten together with one."""
    before = {each for each in node.all_input_nodes if _is_high(each)}
    # The program's outputs keep their names, which an operator put after them would not have.
    after = set(node.users) if _is_high(node) else {u for u in node.users if u.op == "output"}
    return before if node.target in VIEWS and not _is_high(node) else before | after


def _shifted(node: Node) -> tuple[Any, ...] | None:
    target = node.target
    values = [node.meta.get("val"), *(each.meta.get("val") for each in node.all_input_nodes)]
    tensors = [each for each in values if isinstance(each, torch.Tensor)]
    if len(tensors) < len(values) or any(each.shape[:1] != (1,) for each in tensors):
        return None
    rank = tensors[0].ndim
    if target in VIEWS:
        return node.args[0], list(tensors[0].shape[_is_high(node) :])
    if target in SHIFTED:
        return SHIFTED[target](rank, *node.args)
    same = all(each.ndim == rank for each in tensors)
    pointwise = same and torch.Tag.pointwise in getattr(target, "tags", ())
    return node.args if pointwise else None


def _without(keep: set[Node], node: Node) -> Node:
    """Return a tensor without its first axis, or unchanged."""
    return node if node in keep else _call(node.graph, aten.squeeze.dim, node)


def _call(graph: Graph, target: Any, x: Node) -> Node:
    node = graph.call_function(target, (x, 0))
    node.meta["val"] = target(x.meta["val"], 0)
    return node


def _along(rank: int, x: Any, dim: int = 0, *rest: Any) -> tuple[Any, ...] | None:
    """Shift the arguments of operators along one axis that keep the rank."""
    return (x, dim % rank - 1, *rest) if dim % rank else None


def _select(rank: int, x: Node, dim: int, index: int) -> tuple[Any, ...] | None:
    return _along(rank + 1, x, dim, index)


def _permute(rank: int, x: Node, dims: list[int]) -> tuple[Any, ...] | None:
    first, *rest = (dim % rank for dim in dims)
    return (x, [dim - 1 for dim in rest]) if first == 0 else None


def _transpose(rank: int, x: Node, one: int, other: int) -> tuple[Any, ...] | None:
    return (x, one % rank - 1, other % rank - 1) if one % rank and other % rank else None


VIEWS = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}

SHIFTED: Mapping[Any, Callable[..., tuple[Any, ...] | None]] = {
    aten.cat.default: _along,
    aten.clone.default: lambda rank, x: (x,),
    aten.permute.default: _permute,
    aten.select.int: _select,
    aten.slice.Tensor: _along,
    aten.stack.default: _along,
    aten.transpose.int: _transpose,
    aten.unsqueeze.default: _along,
}
"""Functions by operator: (rank of the result, arguments) -> arguments for inputs without their
first axis."""

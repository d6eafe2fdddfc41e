"""Fold the time path of a student's network, since its steps and so its times are fixed.

A network embeds its time and projects the embedding in every block. A student is only ever called
with the times of its step table, so that all of this is known when it is compiled. The weights of
the time path disappear with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["fold_constant_times", "tabulate_times"]

Array = NDArray[np.generic]
Rows = dict[ir.Value, Array]
"""Known rows of values (N, ...), one for each time."""

BROADCASTING = frozenset(("Add", "Sub", "Mul", "Div", "Where"))
"""Operators that take one row in the place of equal ones."""

WITH_GRAPHS = frozenset(("If", "Loop", "Scan"))
"""Operators with graphs inside, which are left as they are."""

LARGEST = 2**24
"""Most numbers of a folded value."""


def fold_constant_times(model: ir.Model) -> int:
    """Fold the time path of a fused student, where each time is a constant; in place.

    Its times are constants that are repeated for each picture, and so depend on the batch's size:
    constant folding leaves them. Here one row of what depends on them stays, where the operator
    that reads it repeats rows itself.

    Returns:
        The number of nodes that went.
    """
    graph = model.graph
    rows: Rows = {}
    for node in graph:
        if node.op_type == "Expand" and (row := _repeated(node)) is not None:
            rows[node.outputs[0]] = row
    _follow(graph, rows)
    for value, row in rows.items():
        _put_row(graph, value, row, rows)
    return _shrunk(model)


def tabulate_times(model: ir.Model, times: Sequence[float], name: str = "t") -> int:
    """Replace the time path of a network by tables that are read at its times; in place.

    The network keeps its inputs. Its result for any other time than those of the step table is not
    a number, so that it cannot pass for the picture of another time.

    Args:
        model: The network.
        times: Times of its step table.
        name: Name of the input (N,) for the time.

    Returns:
        The number of nodes that went; 0 where there is nothing to gain or the times cannot be
        told apart in 8 bits, with which some engines calculate.
    """
    graph = model.graph
    source = next((value for value in graph.inputs if value.name == name), None)
    distinct = sorted(set(times))
    near = max(map(abs, distinct)) / 128 or 1.0
    if source is None or any(after - before < 2 * near for before, after in pairwise(distinct)):
        return 0
    rows: Rows = {source: np.asarray(distinct, np.float32)}
    _follow(graph, rows)
    read = [value for value in rows if value is not source and _readers(value, rows)]
    folded = sum(node.op_type in ("Gemm", "MatMul") for node in _makers(rows))
    if not folded or any(value.is_graph_output() for value in read):
        return 0
    place = _place(graph, source, distinct, near)
    for value in read:
        _put_table(graph, value, rows, place)
    return _shrunk(model)


def _follow(graph: ir.Graph, rows: Rows) -> None:
    """Add all values that depend on constants and known rows only, each row on its own row."""
    for node in graph:
        if node.op_type in WITH_GRAPHS or len(node.outputs) != 1 or node.outputs[0] in rows:
            continue
        found = SPECIAL.get(node.op_type, _calculated)(node, rows)
        if found is not None and found.size <= LARGEST:
            rows[node.outputs[0]] = found


def _calculated(node: ir.Node, rows: Mapping[ir.Value, Array]) -> Array | None:
    """Return a node's rows if all its inputs are known.

    Whether each row depends on its own row alone is tried with the rows in another order and
    number.
    """
    counts = {len(rows[value]) for value in node.inputs if value is not None and value in rows}
    if len(counts) != 1:
        return None
    count = counts.pop()
    order = [*reversed(range(count)), 0, count - 1]
    straight: dict[str, Array] = {}
    mixed: dict[str, Array] = {}
    for value in node.inputs:
        if value is None:
            continue
        rowwise = value in rows
        array = rows[value] if rowwise else _constant(value)
        if array is None:
            return None
        straight[str(value.name)] = array
        mixed[str(value.name)] = array[order] if rowwise else array
    found, other = _run(node, straight), _run(node, mixed)
    if found.ndim == 0 or len(found) != count or other.shape != (len(order), *found.shape[1:]):
        return None
    same = np.allclose(other, found[order], rtol=1e-5, atol=1e-6, equal_nan=True)
    return found if same else None


def _run(node: ir.Node, inputs: Mapping[str, Array]) -> Array:
    result: Sequence[Array] = ReferenceEvaluator(ir.to_proto(node)).run(None, dict(inputs))
    return np.asarray(result[0])


def _expanded(node: ir.Node, rows: Mapping[ir.Value, Array]) -> Array | None:
    """Return the rows of an Expand to the batch."""
    row, rest = _known(node.inputs[0], rows), _rest(node.outputs[0])
    if row is None or rest is None or row.ndim != len(rest) + 1:
        return None
    return np.broadcast_to(row, (len(row), *rest)).copy()


def _reshaped(node: ir.Node, rows: Mapping[ir.Value, Array]) -> Array | None:
    """Return the rows of a Reshape that keeps the batch, whose size may be calculated."""
    row, rest = _known(node.inputs[0], rows), _rest(node.outputs[0])
    if row is None or rest is None or row.size != len(row) * math.prod(rest):
        return None
    return row.reshape(len(row), *rest)


SPECIAL: Mapping[str, Callable[[ir.Node, Mapping[ir.Value, Array]], Array | None]] = {
    "Expand": _expanded,
    "Reshape": _reshaped,
}
"""Operators that take the batch's size as an input."""


def _repeated(node: ir.Node) -> Array | None:
    """Return the one row (1, ...) that an Expand of a constant repeats for the batch."""
    constant, rest = _constant(node.inputs[0]), _rest(node.outputs[0])
    if constant is None or rest is None:
        return None
    if constant.ndim > len(rest) and constant.shape[0] != 1:
        return None
    return np.broadcast_to(constant, (1, *rest)).copy()


def _rest(value: ir.Value) -> tuple[int, ...] | None:
    """Return a value's shape after the batch, if the batch is its only free axis."""
    if value.shape is None or not len(value.shape) or isinstance(value.shape[0], int):
        return None
    rest = tuple(size for size in value.shape[1:] if isinstance(size, int))
    return rest if len(rest) + 1 == len(value.shape) else None


def _known(value: ir.Value | None, rows: Mapping[ir.Value, Array]) -> Array | None:
    return None if value is None else rows.get(value)


def _constant(value: ir.Value | None) -> Array | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _makers(rows: Rows) -> list[ir.Node]:
    return [node for value in rows if (node := value.producer()) is not None]


def _readers(value: ir.Value, rows: Rows) -> list[tuple[ir.Node, int]]:
    """Return the nodes that read a value and are not folded themselves, each with its input."""
    return [
        (use.node, use.idx)
        for use in value.uses()
        if not any(output in rows for output in use.node.outputs)
    ]


def _put_row(graph: ir.Graph, value: ir.Value, row: Array, rows: Rows) -> None:
    """Give those that read a value its row as a constant, where they repeat it themselves."""
    stored: ir.Value | None = None
    for user, index in _readers(value, rows):
        if _repeats(user, value, rows):
            stored = stored or _store(graph, f"{value.name}_row", row)
            user.replace_input_with(index, stored)


def _repeats(user: ir.Node, value: ir.Value, rows: Rows) -> bool:
    """Whether a node gives the same with one row, as another of its inputs has the batch."""
    if user.op_type not in BROADCASTING or value.shape is None:
        return False
    others = [other for other in user.inputs if other is not None and other not in rows]
    return any(
        other.shape is not None
        and len(other.shape) == len(value.shape)
        and not isinstance(other.shape[0], int)
        for other in others
    )


def _place(graph: ir.Graph, source: ir.Value, times: Sequence[float], near: float) -> ir.Value:
    """Add nodes for the number (N,) of the time nearest to each of the input's.

    Where none is as near as `near`, the number is that of the row after the last.
    """
    known = _store(graph, "times", np.asarray([times], np.float32))
    axis = _store(graph, "times_axis", np.asarray([1], np.int64))
    pads = _store(graph, "times_pads", np.asarray([0, 0, 0, 1], np.int64))
    far = _store(graph, "times_near", np.asarray(near, np.float32))
    column = ir.node("Unsqueeze", [source, axis], name="times/unsqueeze")
    apart = ir.node("Sub", [column.outputs[0], known], name="times/apart")
    size = ir.node("Abs", [apart.outputs[0]], name="times/size")
    padded = ir.node("Pad", [size.outputs[0], pads, far], name="times/padded")
    nearest = ir.node(
        "ArgMin", [padded.outputs[0]], {"axis": 1, "keepdims": 0}, name="times/nearest"
    )
    graph.insert_before(graph[0], [column, apart, size, padded, nearest])
    return nearest.outputs[0]


def _put_table(graph: ir.Graph, value: ir.Value, rows: Rows, place: ir.Value) -> None:
    """Give those that read a value the rows of its times, looked up in a table."""
    row, readers, maker = rows[value], _readers(value, rows), value.producer()
    assert maker is not None
    missing = np.full((1, *row.shape[1:]), math.nan, row.dtype)
    table = _store(graph, f"{value.name}_times", np.concatenate([row, missing]))
    gather = ir.node("Gather", [table, place], {"axis": 0}, name=f"{maker.name}_times")
    found = gather.outputs[0]
    found.name, found.shape, found.type = f"{value.name}_found", value.shape, value.type
    graph.insert_after(maker, gather)
    for user, index in readers:
        user.replace_input_with(index, found)


def _store(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = (
        ir.Shape(array.shape),
        ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )
    graph.register_initializer(value)
    return value


def _shrunk(model: ir.Model) -> int:
    """Remove what nothing reads any more; return how many nodes went."""
    before = len(model.graph)
    RemoveUnusedNodesPass()(model)
    return before - len(model.graph)

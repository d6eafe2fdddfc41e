"""Give reshapes a constant shape where it is known except for the batch."""

from __future__ import annotations

import numpy as np
import onnx

from edgedistill_export import onnx_files

__all__ = ["static_reshapes"]


def static_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace computed shapes by constants, in place, and drop the nodes that computed them.

    As the batch is the only free axis, a reshape's result has at most one unknown size, written as
    -1. A traced U-Net loses a sixth of its nodes (the shape arithmetic of attention and of group
    norms), which no engine on CPU removes by itself and some accelerators refuse.
    """
    graph = model.graph
    constants = {weight.name for weight in graph.initializer}
    shapes = _shapes(model)
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] in constants:
            continue
        sizes = shapes.get(node.output[0], [-1, -1])
        if sizes.count(-1) <= 1:
            node.input[1] = f"{node.output[0]}_shape"
            array = np.array(sizes, np.int64)
            graph.initializer.append(onnx.numpy_helper.from_array(array, node.input[1]))
    _drop_unused(graph)
    return model


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the sizes of every tensor of known rank, -1 where free."""
    return {
        value.name: [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
        for value in onnx_files.infer_values(model)
        if value.type.tensor_type.HasField("shape")
    }


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and weights that no output needs."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    weights = [weight for weight in graph.initializer if weight.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)

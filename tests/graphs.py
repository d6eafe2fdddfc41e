"""Small ONNX graphs made by hand, with their entries in a manifest."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto, checker, helper, numpy_helper, save

from edgedistill_runtime import manifest as schema

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def write_graph(path: Path, nodes, inputs, outputs, weights) -> schema.Graph:
    """Save an ONNX graph; inputs and outputs are {name: (shape, type)}."""

    def info(ports):
        return [
            helper.make_tensor_value_info(n, kind, shape) for n, (shape, kind) in ports.items()
        ]

    def describe(ports):
        kinds = {FLOAT: "float32", INT: "int64"}
        return tuple(
            schema.Port(name=n, shape=tuple(shape), dtype=kinds[kind])
            for n, (shape, kind) in ports.items()
        )

    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, path.stem, info(inputs), info(outputs), tensors)
    opset = helper.make_opsetid("", 20)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    checker.check_model(model)
    save(model, str(path))
    return schema.Graph(
        file=path.name,
        sha256={path.name: schema.sha256(path)},
        precision="fp32",
        inputs=describe(inputs),
        outputs=describe(outputs),
        notes={},
    )


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], **attributes)

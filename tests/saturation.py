"""Whether 8-bit products saturate on this CPU.

x86 CPUs without VNNI add pairs of u8 x s8 products in 16 bits (vpmaddubsw), which two large ones
overflow: int8 graphs with 8-bit weights come out wrong there, whatever was exported.
"""

import functools

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

__all__ = ["exact_int8", "saturates"]


@functools.cache
def saturates() -> bool:
    """Whether 64 products of 255 and 127 add up to less than they should."""
    pairs = {
        "w": np.full((64, 8), 127, np.int8),
        "one": np.float32(1),
        "coarse": np.float32(1e4),
        "unsigned": np.uint8(0),
        "signed": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "unsigned"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "unsigned"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "one", "signed"], ["dw"]),
        helper.make_node("MatMul", ["d", "dw"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "coarse", "unsigned"], ["qm"]),
        helper.make_node("DequantizeLinear", ["qm", "coarse", "unsigned"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in pairs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.full((1, 64), 255, np.float32)})[0]
    return bool(found.max() < 0.9 * 64 * 255 * 127)


exact_int8 = pytest.mark.skipif(
    saturates(), reason="8-bit products saturate on this CPU, which has no VNNI"
)

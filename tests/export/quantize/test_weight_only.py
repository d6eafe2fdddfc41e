import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgedistill_export.passes.fp16 import fp16
from edgedistill_export.passes.weight_only import weight_only

RNG = np.random.default_rng(0)


def layer(operator, shape, weight, **attributes):
    """A float32 graph of one layer, x -> y."""
    node = helper.make_node(operator, ["x", "w"], ["y"], "net/layer", **attributes)
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", shape), ("y", [None] * len(shape)))
    ]
    graph = helper.make_graph(
        [node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def weight_of(model):
    """The weight that the layer of a converted graph computes with, and its parts by name."""
    parts = {w.name: w for w in model.graph.initializer}
    front = next(n for n in model.graph.node if n.op_type == "DequantizeLinear")
    session = ort.InferenceSession(
        helper.make_model(
            helper.make_graph(
                [front],
                "g",
                [],
                [
                    helper.make_tensor_value_info(
                        front.output[0], parts[front.input[1]].data_type, None
                    )
                ],
                [parts[name] for name in front.input],
            ),
            opset_imports=model.opset_import,
            ir_version=model.ir_version,
        ).SerializeToString()
    )
    return (
        session.run(None, {})[0].astype(np.float32),
        parts[front.input[0]],
        parts[front.input[1]],
    )


CASES = {
    "Conv": ([1, 4, 8, 8], (6, 4, 3, 3), {"pads": [1] * 4}, (1, 2, 3)),
    "MatMul": ([1, 5, 64], (64, 24), {}, (0,)),
    "Gemm": ([1, 64], (24, 64), {"transB": 1}, (1,)),
}


@pytest.mark.parametrize("operator", CASES)
def test_eight_bits_are_off_by_half_a_step_of_each_output_channel(operator):
    shape, size, attributes, inputs = CASES[operator]
    weight = RNG.normal(size=size).astype(np.float32)
    model = weight_only(layer(operator, shape, weight, **attributes), 8, {"net/layer"})
    onnx.checker.check_model(model, full_check=True)
    found, stored, _ = weight_of(model)
    assert stored.data_type == TensorProto.INT8
    step = np.abs(weight).max(inputs, keepdims=True) / 127
    assert (np.abs(found - weight) <= 0.501 * step).all()
    assert "w" not in {w.name for w in model.graph.initializer}


@pytest.mark.parametrize(("inputs", "block"), [(64, 32), (48, 16)])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_four_bits_are_off_by_half_a_step_of_each_block_of_inputs(operator, inputs, block):
    weight = RNG.normal(size=(inputs, 24)).astype(np.float32)
    given, attributes = (weight, {}) if operator == "MatMul" else (weight.T, {"transB": 1})
    model = weight_only(
        layer(operator, [1, inputs], np.ascontiguousarray(given), **attributes), 4, {"net/layer"}
    )
    onnx.checker.check_model(model, full_check=True)
    found, stored, _ = weight_of(model)
    assert stored.data_type == TensorProto.INT4
    assert len(stored.raw_data) == weight.size // 2
    found = found if operator == "MatMul" else found.T
    blocks = weight.reshape(-1, block, 24)
    step = np.abs(blocks).max(1, keepdims=True) / 7
    assert (np.abs(found.reshape(blocks.shape) - blocks) <= 0.501 * step).all()


@pytest.mark.parametrize(
    ("operator", "shape", "size"),
    [("Conv", [1, 32, 8, 8], (6, 32, 1, 1)), ("MatMul", [1, 40], (40, 24))],
)
def test_what_four_bits_do_not_fit_gets_eight(operator, shape, size):
    weight = RNG.normal(size=size).astype(np.float32)
    model = weight_only(layer(operator, shape, weight), 4, {"net/layer"})
    assert weight_of(model)[1].data_type == TensorProto.INT8


def test_a_float16_scale_is_the_one_rounded_with():
    weight = (RNG.normal(size=(64, 24)) * 1e-3).astype(np.float32)
    weight[:, 3] = 0
    model = weight_only(fp16(layer("MatMul", [1, 64], weight)), 8, {"net/layer"})
    found, _, scale = weight_of(model)
    assert scale.data_type == TensorProto.FLOAT16
    step = np.abs(weight).max(0) / 127
    # Steps of 2e-5 are below float16's normal numbers, and the weights themselves are rounded.
    assert (np.abs(found - weight) <= 0.55 * step).all()
    assert (found[:, 3] == 0).all()


def test_layers_that_are_not_named_keep_their_weights():
    model = layer("MatMul", [1, 64], RNG.normal(size=(64, 24)).astype(np.float32))
    before = model.SerializeToString()
    assert weight_only(model, 8, set()).SerializeToString() == before


def test_a_weight_shared_with_another_layer_stays_for_that_one():
    model = layer("MatMul", [1, 64], RNG.normal(size=(64, 64)).astype(np.float32))
    model.graph.node.append(helper.make_node("MatMul", ["y", "w"], ["z"], "net/other"))
    model.graph.output[0].name = "z"
    weight_only(model, 8, {"net/layer"})
    assert [n.input[1] for n in model.graph.node if n.op_type == "MatMul"] == [
        "w_dequantized",
        "w",
    ]
    assert {w.name for w in model.graph.initializer} == {"w", "w_int8", "w_scale"}

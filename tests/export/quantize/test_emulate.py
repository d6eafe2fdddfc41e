import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgedistill_export.passes.emulate import emulate
from edgedistill_export.passes.fp8 import fp8
from edgedistill_export.passes.fp16 import bf16, fp16

E4M3 = ml_dtypes.float8_e4m3fn
VALUES = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


def graph(nodes, initializers, opset=20):
    """A float32 graph x (N, 8) -> y."""
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", ["n", 8]), ("y", [None, None]))
    ]
    return helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


def run(model, x=VALUES):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def affine():
    """y = (x * a) * b, with factors that no half holds."""
    factors = {"a": np.float32(1.2345), "b": np.float32(0.9876)}
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["h"], "net/first"),
        helper.make_node("Mul", ["h", "b"], ["y"], "net/second"),
    ]
    return graph(nodes, [numpy_helper.from_array(np.asarray(v), k) for k, v in factors.items()])


@pytest.mark.parametrize(("convert", "kind"), [(fp16, np.float16), (bf16, ml_dtypes.bfloat16)])
def test_every_result_is_rounded_as_numpy_rounds_it(convert, kind):
    found = run(emulate(convert(affine())))
    x, a, b = (np.asarray(v).astype(kind) for v in (VALUES, 1.2345, 0.9876))
    np.testing.assert_array_equal(found, ((x * a) * b).astype(np.float32))


def test_float16_overflows_as_it_does_on_a_gpu():
    large = np.full((1, 8), 6e4, np.float32)
    assert np.isinf(run(emulate(fp16(affine())), large)).all()
    assert np.isfinite(run(fp16(affine()), large)).all(), "ONNX Runtime rounds by itself by now"


def test_weights_keep_their_types():
    model = emulate(bf16(affine()))
    assert {w.data_type for w in model.graph.initializer} == {TensorProto.BFLOAT16}
    onnx.checker.check_model(model, full_check=True)


def quantized(weight, scales):
    """x and a weight (8, outputs) between int8 Q/DQ, multiplied."""
    whole = np.rint(weight / scales).astype(np.int8)
    zeros = np.zeros(scales.shape, np.int8)
    values = {
        "s": np.float32(3 / 127),
        "z": np.int8(0),
        "w_quantized": whole,
        "w_scale": scales,
        "w_zero": zeros,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node(
            "DequantizeLinear", ["w_quantized", "w_scale", "w_zero"], ["w"], "w", axis=1
        ),
        helper.make_node("MatMul", ["d", "w"], ["y"], "net/layer"),
    ]
    return graph(nodes, [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()])


def test_float8_covers_the_range_of_int8_and_rounds_as_numpy_does():
    weight = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    scales = (np.abs(weight).max(0) / 127).astype(np.float32)
    model = fp8(quantized(weight, scales), {"w": numpy_helper.from_array(weight, "w")})
    onnx.checker.check_model(model, full_check=True)
    stored = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    assert stored["w_quantized"].dtype == E4M3
    assert np.abs(stored["w_quantized"].astype(np.float32)).max(0).tolist() == [448] * 5
    found = run(emulate(model))
    x = (VALUES / np.float32(3 / 448)).clip(-448, 448).astype(E4M3).astype(np.float32) * (3 / 448)
    w = (weight / (scales * 127 / 448)).astype(E4M3).astype(np.float32) * (scales * 127 / 448)
    np.testing.assert_allclose(found, x @ w, rtol=1e-5, atol=1e-5)

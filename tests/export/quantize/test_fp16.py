import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from edgedistill.teachers.base import ExportGraph
from edgedistill_export.passes.emulate import emulate
from edgedistill_export.passes.fp16 import bf16, fp16
from edgedistill_export.trace import trace

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


class Net(torch.nn.Module):
    """A time embedding, a mask beyond float16, a resize and a second output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(16, 8)
        self.register_buffer("rates", torch.logspace(0, -4, 8))
        self.register_buffer("mask", torch.tensor([0.0, torch.finfo(torch.float32).min] * 4))

    def forward(self, x, t):
        angles = t[:, None] * self.rates
        emb = self.linear(torch.cat([angles.sin(), angles.cos()], 1))
        h = torch.softmax(x.flatten(1) + emb + self.mask, -1)
        image = torch.nn.functional.interpolate(h.reshape(-1, 2, 2, 2), scale_factor=2.0)
        return image, emb


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    path = tmp_path_factory.mktemp("fp16") / "net.onnx"
    inputs = {"x": torch.zeros(2, 2, 2, 2), "t": torch.zeros(2)}
    trace(ExportGraph(Net(), inputs, ("image", "emb")), path)
    full = path.read_bytes()
    return full, fp16(onnx.load_from_string(full))


def run(model, **inputs):
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def test_results_agree_at_times_float16_cannot_hold(pair):
    full, half = pair
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 2)).astype(np.float32)
    t = np.array([999.37, 487.321, 0.01], np.float32)
    expected = run(full, x=x, t=t)
    found = run(half.SerializeToString(), x=x, t=t)
    for a, b in zip(expected, found, strict=True):
        assert b.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=2e-3)
    assert np.isfinite(found[0]).all()


def test_borders_stay_float32_and_weights_become_float16(pair):
    graph = pair[1].graph
    ports = [*graph.input, *graph.output]
    assert {port.type.tensor_type.elem_type for port in ports} == {FLOAT}
    types = {w.name: w.data_type for w in graph.initializer}
    assert types["linear.weight_fp16"] == HALF
    assert "linear.weight" not in types
    # Only the rates of the angles and the scales of the resize stay.
    assert sum(kind == FLOAT for kind in types.values()) == 2


def test_only_angles_are_computed_in_float32(pair):
    halves = {o for n in pair[1].graph.node if n.op_type == "Cast" for o in n.output}
    for node in pair[1].graph.node:
        if node.op_type in ("Sin", "Cos", "Mul"):
            assert not halves & set(node.input)


def test_bfloat16_keeps_borders_and_cuts_to_its_own_range(pair):
    model = bf16(onnx.load_from_string(pair[0]))
    onnx.checker.check_model(model, full_check=True)
    ports = [*model.graph.input, *model.graph.output]
    assert {port.type.tensor_type.elem_type for port in ports} == {FLOAT}
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    mask = weights["mask_bf16"].astype(np.float32)
    assert mask.min() == -(2.0**128 - 2.0**120)


def test_a_subgraph_is_refused():
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("y", FLOAT, [1])],
    )
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("If", ["b"], ["z"], "if", then_branch=branch, else_branch=branch)],
        "main",
        [info("b", onnx.TensorProto.BOOL, []), info("x", FLOAT, [1])],
        [info("z", FLOAT, [1])],
    )
    with pytest.raises(ValueError, match=r"if: subgraphs \(If\)"):
        fp16(onnx.helper.make_model(graph))


def _mean_square_norm(epsilon):
    """x / sqrt(mean(x^2) + epsilon)."""
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=1),
        helper.make_node("Add", ["mean", "epsilon"], ["sum"]),
        helper.make_node("Sqrt", ["sum"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["y"]),
    ]
    constants = {"two": np.float32(2), "epsilon": np.float32(epsilon), "axes": np.array([1])}
    return _graph(nodes, constants)


def _ratio(epsilon):
    """x / (x + epsilon): 0 of 0."""
    nodes = [
        helper.make_node("Add", ["x", "epsilon"], ["sum"]),
        helper.make_node("Div", ["x", "sum"], ["y"]),
    ]
    return _graph(nodes, {"epsilon": np.float32(epsilon)})


def _graph(nodes, constants):
    ports = [helper.make_tensor_value_info(n, FLOAT, ["batch", 4]) for n in ("x", "y")]
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    made = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (_mean_square_norm(1e-6), [[300.0, -2000, 5, 40000]]),
        (_mean_square_norm(1e-6), [[1e-4, -2e-4, 0, 3e-4]]),
        (_ratio(1e-15), [[0.0, 1, -2, 1e-3]]),
    ],
)
def test_squares_and_epsilons_that_float16_does_not_hold_stay_in_float32(model, x):
    x = np.array(x, np.float32)
    expected = run(model.SerializeToString(), x=x)[0]
    found = run(emulate(fp16(model)).SerializeToString(), x=x)[0]
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-4)

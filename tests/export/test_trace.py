import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from edgedistill.teachers.base import ExportGraph
from edgedistill_export import onnx_build, onnx_files
from edgedistill_export.passes.static_reshapes import static_reshapes
from edgedistill_export.trace import ports, trace


@pytest.fixture(scope="module")
def traced(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced")
    graph = student.teacher.graphs()["denoiser"]
    onnx_build.trace(graph, folder / "denoiser.onnx")
    return graph, folder / "denoiser.onnx"


def draw(graph: ExportGraph, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        name: torch.randn(batch, *tensor.shape[1:], generator=generator)
        for name, tensor in graph.inputs.items()
    }


@pytest.mark.parametrize("batch", [1, 3])
def test_another_batch_than_the_traced_one_is_equal(traced, batch):
    graph, path = traced
    inputs = draw(graph, batch)
    found = run(str(path), inputs)
    with torch.no_grad():
        expected = graph.module(*inputs.values())
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


def test_two_traces_are_the_same_bytes(student, tmp_path):
    graph = student.teacher.graphs()["text_encoder"]
    for name in ("first.onnx", "second.onnx"):
        trace(graph, tmp_path / name)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_no_notes_of_this_machine_are_left(traced):
    assert b"site-packages" not in traced[1].read_bytes()


def test_ports_describe_inputs_and_outputs(traced):
    inputs, outputs = ports(traced[0])
    assert [(p.name, p.shape, p.dtype) for p in inputs] == [
        ("x", ("batch", 4, 4, 4), "float32"),
        ("t", ("batch",), "float32"),
        ("encoder_hidden_states", ("batch", 8, 16), "float32"),
    ]
    assert [(p.name, p.shape) for p in outputs] == [("f", ("batch", 4, 4, 4))]


def run(model, inputs):
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["f"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]


@pytest.mark.parametrize("batch", [1, 5])
def test_static_reshapes_leave_no_shape_arithmetic_and_change_nothing(traced, batch):
    graph, path = traced
    model = static_reshapes(onnx.load(str(path)))
    assert {node.domain for node in model.graph.node} == {""}
    before = [node.op_type for node in onnx.load(str(path)).graph.node]
    after = [node.op_type for node in model.graph.node]
    assert before.count("Shape") > 10
    assert after.count("Shape") == 0
    assert len(after) <= len(before) - before.count("Shape")
    inputs = draw(graph, batch)
    expected = run(path.read_bytes(), inputs)
    np.testing.assert_array_equal(run(model.SerializeToString(), inputs), expected)


def test_weights_beyond_the_limit_lie_beside_the_graph(traced, tmp_path, monkeypatch):
    graph, path = traced
    monkeypatch.setattr(onnx_files, "INLINE_LIMIT", 1000)
    large = tmp_path / "large.onnx"
    onnx_files.write(static_reshapes(onnx_files.read(path)), large)
    assert onnx_files.data_file(large).stat().st_size > 10_000
    assert large.stat().st_size < path.stat().st_size / 2
    inputs = draw(graph, 2)
    np.testing.assert_array_equal(run(str(large), inputs), run(str(path), inputs))


def test_a_traced_file_may_lie_beside_its_weights(tmp_path, monkeypatch):
    linear = ExportGraph(torch.nn.Linear(64, 64), {"input": torch.zeros(2, 64)}, ("f",))
    monkeypatch.setattr(onnx_files, "INLINE_LIMIT", 1000)
    path = tmp_path / "linear.onnx"
    trace(linear, path)
    assert onnx_files.data_file(path).stat().st_size >= 4 * 64 * 64
    assert len(onnx_files.read(path).graph.initializer[0].raw_data) >= 256


class Fixed(torch.nn.Module):
    def forward(self, x):
        return x.reshape(2, 2, 2)


def test_a_network_that_fixes_its_batch_does_not_export(tmp_path):
    graph = ExportGraph(Fixed(), {"x": torch.zeros(2, 4)}, ("f",))
    with pytest.raises(ValueError, match="fixed: x is fixed to the batch it was traced with"):
        trace(graph, tmp_path / "fixed.onnx")


class Idle(torch.nn.Module):
    def forward(self, x):
        return x.squeeze(1) + x.squeeze(2)


class Ratio(torch.nn.Module):
    def forward(self, x):
        return x / (x + 1e-15)


@pytest.mark.parametrize(
    ("net", "x"),
    [
        pytest.param(Idle(), torch.rand(2, 3, 3), id="squeezing an axis longer than 1"),
        pytest.param(Ratio(), torch.tensor([[0.0], [2.0]]), id="0 / 1e-15"),
    ],
)
def test_onnx_computes_what_torch_does(net, x, tmp_path):
    trace(ExportGraph(net, {"x": x}, ("f",)), tmp_path / "net.onnx")
    np.testing.assert_allclose(run(str(tmp_path / "net.onnx"), {"x": x}), net(x).numpy())

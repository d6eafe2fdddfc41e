import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from edgedistill.teachers.base import Graph
from edgedistill_export import onnx_files
from edgedistill_export.passes.optimise import optimise
from edgedistill_export.trace import ports, trace


@pytest.fixture(scope="module")
def traced(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced")
    graph = student.teacher.graphs()["denoiser"]
    trace(graph, folder / "denoiser.onnx")
    return graph, folder / "denoiser.onnx"


def draw(graph: Graph, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        name: torch.randn(batch, *tensor.shape[1:], generator=generator)
        for name, tensor in graph.inputs.items()
    }


@pytest.mark.parametrize("batch", [1, 3])
def test_another_batch_than_the_traced_one_is_equal(traced, batch):
    graph, path = traced
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = draw(graph, batch)
    (found,) = session.run(["f"], {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.no_grad():
        expected = graph.module(*inputs.values())
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


def test_two_traces_are_the_same_bytes(traced, tmp_path):
    graph, path = traced
    trace(graph, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


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


def test_optimised_graph_is_smaller_standard_and_equal(traced):
    graph, path = traced
    model = optimise(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert [domain.domain for domain in model.opset_import] == [""]
    assert len(model.graph.node) < len(onnx.load(str(path)).graph.node)
    inputs = {name: tensor.numpy() for name, tensor in draw(graph, 2).items()}
    results = [
        ort.InferenceSession(m, providers=["CPUExecutionProvider"]).run(None, inputs)[0]
        for m in (path.read_bytes(), model.SerializeToString())
    ]
    np.testing.assert_allclose(*results, atol=1e-5)


def test_weights_beyond_the_limit_lie_beside_the_graph(traced, tmp_path, monkeypatch):
    graph, path = traced
    monkeypatch.setattr(onnx_files, "INLINE_LIMIT", 1000)
    trace(graph, tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx.data").stat().st_size > 10_000
    model = optimise(tmp_path / "large.onnx")
    onnx_files.write(model, tmp_path / "final.onnx")
    assert (tmp_path / "final.onnx").stat().st_size < path.stat().st_size / 2
    inputs = {name: tensor.numpy() for name, tensor in draw(graph, 2).items()}
    results = [
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, inputs)[0]
        for p in (path, tmp_path / "final.onnx")
    ]
    np.testing.assert_allclose(*results, atol=1e-5)


class Fixed(torch.nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


def test_a_network_that_fixes_its_batch_does_not_export(tmp_path):
    graph = Graph(Fixed(), {"x": torch.zeros(2, 4)}, ("f",))
    with pytest.raises(Exception, match="batch"):
        trace(graph, tmp_path / "fixed.onnx")

"""int8 and int4 in ONNX files."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from saturation import exact_int8
from torch import nn

from edgedistill.teachers.base import ExportGraph
from edgedistill_export.onnx_build import build_onnx
from edgedistill_export.quantize.qdq import layer_nodes, quantize_dynamic, quantize_static
from edgedistill_export.quantize.weights import quantize_weights


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.inner = nn.ModuleDict({"linear": nn.Linear(64, 32)})
        self.time = nn.Linear(8, 8)

    def forward(self, x):
        h = torch.relu(self.conv(x)).flatten(2)
        h = h + self.time(h.mean(2))[:, :, None]
        return self.inner["linear"](h)


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> tuple[Path, Net]:
    torch.manual_seed(0)
    net = Net()
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    build_onnx(ExportGraph(net, {"x": torch.randn(2, 4, 8, 8)}, ("y",)), path)
    return path, net


@pytest.fixture
def file(traced, tmp_path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(traced[0].read_bytes())
    return path


def calls(count: int = 16) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(1, 4, 8, 8)).astype(np.float32)} for _ in range(count)]


def run(path: Path) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options)
    return np.concatenate([session.run(None, call)[0] for call in calls()])


def error(path: Path, traced) -> float:
    truth = run(traced[0])
    return float(np.sqrt(np.mean((run(path) - truth) ** 2)) / np.abs(truth).max())


def weights(path: Path) -> dict[str, np.ndarray]:
    return {w.name: numpy_helper.to_array(w) for w in onnx.load(str(path)).graph.initializer}


def test_the_nodes_of_a_layer_are_found_by_its_path(file):
    nodes = layer_nodes(onnx.load(str(file)))
    assert set(nodes) == {"conv", "inner.linear", "time"}
    assert {name: len(found) for name, found in nodes.items()} == dict.fromkeys(nodes, 1)


@exact_int8
def test_static_int8_is_near_and_explicit(file, traced):
    quantize_static(file, calls(), frozenset())
    kinds = [node.op_type for node in onnx.load(str(file)).graph.node]
    assert kinds.count("QuantizeLinear") >= 3
    assert 0.0005 < error(file, traced) < 0.01
    assert file.stat().st_size < traced[0].stat().st_size


def test_layers_that_are_kept_have_their_float_weights(file, traced):
    quantize_static(file, calls(), frozenset({"conv", "time"}))
    _, net = traced
    found = weights(file)
    np.testing.assert_array_equal(found["conv.weight"], net.conv.weight.detach().numpy())
    np.testing.assert_array_equal(found["time.weight"], net.time.weight.detach().numpy())
    assert "inner.linear.weight" not in found
    assert found["inner.linear.weight_quantized"].dtype == np.int8


def test_everything_kept_changes_nothing(file, traced):
    for quantize in (quantize_dynamic, lambda p, k: quantize_static(p, calls(), k)):
        quantize(file, frozenset({"conv", "time", "inner.linear"}))
        assert file.read_bytes() == traced[0].read_bytes()


@exact_int8
def test_symmetric_has_no_zero_points_but_zero(file, traced):
    quantize_static(file, calls(), frozenset(), symmetric=True)
    points = [array for name, array in weights(file).items() if "zero_point" in name]
    assert points
    assert all(not array.any() and array.dtype == np.int8 for array in points)
    assert error(file, traced) < 0.02


def test_calibration_needs_calls(file):
    with pytest.raises(ValueError, match="at least one call"):
        quantize_static(file, [], frozenset())


def test_dynamic_int8_is_near(file, traced):
    quantize_dynamic(file, frozenset({"conv"}))
    kinds = {node.op_type for node in onnx.load(str(file)).graph.node}
    assert "MatMulInteger" in kinds
    assert "Conv" in kinds
    assert 0.0001 < error(file, traced) < 0.01


@pytest.mark.parametrize(("bits", "least", "most"), [(8, 1e-5, 0.004), (4, 0.002, 0.05)])
def test_weights_alone(file, traced, bits, least, most):
    quantize_weights(file, bits, frozenset({"time"}))
    model = onnx.load(str(file))
    packed = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    assert {a.name: a.i for a in packed.attribute}["bits"] == bits
    assert weights(file)["conv.weight_int8"].dtype == np.int8
    assert weights(file)["time.weight"].dtype == np.float32
    assert least < error(file, traced) < most


def test_a_channel_of_a_convolution_is_off_by_half_its_step(file, traced):
    quantize_weights(file, 8, frozenset({"time", "inner.linear"}))
    found, truth = weights(file), traced[1].conv.weight.detach().numpy()
    scale = found["conv.weight_scale"].reshape(-1, 1, 1, 1)
    assert (np.abs(found["conv.weight_int8"] * scale - truth) <= 0.5 * scale + 1e-7).all()
    np.testing.assert_allclose(scale.ravel(), np.abs(truth).max((1, 2, 3)) / 127, rtol=1e-6)

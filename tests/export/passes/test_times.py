"""The time path is known when a student is compiled: tables in its network, nothing when fused."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from edgedistill.teachers.base import ExportGraph
from edgedistill_export.fuse import fuse
from edgedistill_export.onnx_build import build_onnx
from edgedistill_export.trace import trace
from edgedistill_export.walk import networks

TIME_PATH = {"Sin", "Cos", "Gemm"}
"""Operators that a U-Net of Stable Diffusion has in its time path only."""


class Net(torch.nn.Module):
    """A time embedding that scales and shifts features; `joint` mixes the pictures' times."""

    def __init__(self, joint=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Sequential(
            torch.nn.Linear(4, 16), torch.nn.SiLU(), torch.nn.Linear(16, 12)
        )
        self.joint = joint

    def forward(self, x, t):
        waves = t[:, None] * torch.tensor([0.01, 0.02, 0.03, 0.05])
        emb = self.embed(torch.cat([waves[:, :2].sin(), waves[:, 2:].cos()], 1))
        if self.joint:
            emb = emb - emb.mean(0, keepdim=True)
        scale, shift = emb.reshape(t.shape[0], 2, 6).chunk(2, 1)
        return x * (1 + scale[:, 0, :, None]) + shift[:, 0, :, None]


TIMES = (999.0, 749.0, 499.0, 249.0)
EXAMPLE = {"x": torch.randn(2, 6, 5), "t": torch.zeros(2)}


def run(path, x, t):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["f"], {"x": x.numpy(), "t": t.numpy()})[0]


def kinds(path):
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@pytest.mark.parametrize("t", [TIMES, TIMES[::-1], (499.0,), (999.0, 999.0, 249.0)])
def test_tables_give_what_the_network_gives_at_its_times(t, tmp_path):
    net = Net().eval()
    trace(ExportGraph(net, EXAMPLE, ("f",), times=TIMES), tmp_path / "net.onnx")
    assert not {"Gemm", "Sin", "Cos", "MatMul"} & set(kinds(tmp_path / "net.onnx"))
    x, t = torch.randn(len(t), 6, 5), torch.tensor(t)
    np.testing.assert_allclose(
        run(tmp_path / "net.onnx", x, t), net(x, t).detach().numpy(), atol=1e-5
    )


def test_another_time_is_not_a_number(tmp_path):
    trace(ExportGraph(Net().eval(), EXAMPLE, ("f",), times=TIMES), tmp_path / "net.onnx")
    found = run(tmp_path / "net.onnx", torch.randn(3, 6, 5), torch.tensor([999.0, 600.0, 0.0]))
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize(
    ("net", "times"),
    [
        pytest.param(Net(), (), id="times are not known"),
        pytest.param(Net(), (999.0, 995.0), id="times too near for 8 bits"),
        pytest.param(Net(joint=True), TIMES, id="one picture's embedding depends on all"),
    ],
)
def test_what_cannot_be_tabulated_stays(net, times, tmp_path):
    net = net.eval()
    trace(ExportGraph(net, EXAMPLE, ("f",), times=times), tmp_path / "net.onnx")
    x, t = torch.randn(3, 6, 5), torch.tensor([999.0, 995.0, 3.0] if not net.joint else TIMES[:3])
    np.testing.assert_allclose(
        run(tmp_path / "net.onnx", x, t), net(x, t).detach().numpy(), atol=1e-4
    )


@pytest.mark.parametrize("times", [(0.0,), (1.0,), (0.0, 0.25, 0.5, 1.0)])
def test_times_of_flows_and_a_single_step(times, tmp_path):
    net = Net().eval()
    trace(ExportGraph(net, EXAMPLE, ("f",), times=times), tmp_path / "net.onnx")
    assert "Gather" in kinds(tmp_path / "net.onnx")
    x, t = torch.randn(len(times), 6, 5), torch.tensor(times)
    np.testing.assert_allclose(
        run(tmp_path / "net.onnx", x, t), net(x, t).detach().numpy(), atol=1e-5
    )


def test_a_student_s_network_has_no_time_path_left(student, tmp_path):
    whole, known = student.teacher.graphs()["denoiser"], networks(student)["denoiser"]
    build_onnx(whole, tmp_path / "whole.onnx")
    build_onnx(known, tmp_path / "known.onnx")
    before, after = kinds(tmp_path / "whole.onnx"), kinds(tmp_path / "known.onnx")
    assert set(before) >= TIME_PATH
    assert not TIME_PATH & set(after)
    assert len(after) < len(before)
    assert (tmp_path / "known.onnx").stat().st_size < (tmp_path / "whole.onnx").stat().st_size


def test_a_fused_student_has_no_time_path_and_one_text_path(student, tmp_path):
    build_onnx(fuse(student), tmp_path / "fused.onnx")
    found = kinds(tmp_path / "fused.onnx")
    assert not TIME_PATH & set(found)
    assert "Gather" in found  # of token embeddings
    keys = [
        n.name
        for n in onnx.load(str(tmp_path / "fused.onnx")).graph.node
        if "attn2.to_k" in n.name
    ]
    layers = {name.rpartition("/")[0] for name in keys}
    assert len([name for name in keys if "MatMul" in name or "linear" in name]) == len(layers)

"""A model run in pieces puts out what it does in one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill_export.quantize import pieces
from edgedistill_runtime.backends.openvino import load_openvino

ov = load_openvino()


class Skips(nn.Module):
    """Branches that lie across every cut, and an input that many layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 32, 3, padding=1)
        self.time = nn.ModuleList(nn.Linear(8, 32) for _ in range(4))
        self.layers = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(4))
        self.up = nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        first = h = self.down(x)
        for layer, time in zip(self.layers, self.time, strict=True):
            h = h + torch.relu(layer(h) + time(c)[:, :, None, None])
        return self.up(torch.cat([h, first], 1)) + x


def model(tmp_path):
    torch.manual_seed(0)
    net = Skips().eval()
    inputs = (torch.randn(1, 4, 8, 8), torch.randn(1, 8))
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, inputs, path, input_names=["x", "c"], output_names=["y"], dynamo=True)
    converted = ov.convert_model(path)
    # Further outputs, as a calibration asks for: inside, and of an input.
    inside = [op for op in converted.get_ops() if op.get_type_name() == "Relu"]
    for i, op in enumerate(inside):
        op.output(0).set_names({f"relu{i}"})
        converted.add_outputs([op.output(0)])
    return converted


def calls():
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.standard_normal((1, 4, 8, 8), np.float32),
            "c": rng.standard_normal((1, 8), np.float32),
        }
        for _ in range(3)
    ]


@pytest.mark.parametrize("least", [1, 40_000, 10**9])
def test_outputs_are_those_of_the_whole(tmp_path, least):
    whole = ov.Core().compile_model(model(tmp_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    engine = pieces.Pieces(model(tmp_path), calls(), least)
    for call in calls():
        want, found = whole(call), engine.infer(call)
        names = {name for port in whole.outputs for name in port.get_names()}
        assert set(found) >= names >= {"y", "relu0", "relu3"}
        for port in whole.outputs:
            for name in port.get_names():
                np.testing.assert_allclose(found[name], want[port], rtol=1e-5, atol=1e-5)


def test_no_piece_holds_more_than_its_share_and_one_layer(tmp_path):
    layer = 32 * 32 * 9 * 4
    whole = model(tmp_path)
    total = weights(whole.get_ops())
    parts = pieces.cut(whole, least=1)
    assert 4 <= len(parts) <= pieces.COUNT
    held = [weights(opened(part).get_ops()) for part in parts]
    assert max(held) <= total / pieces.COUNT + 2 * layer
    assert sum(held) == total
    assert len(pieces.cut(model(tmp_path), least=10**9)) == 1


def opened(part):
    outputs = [*part.results, *map(ov.opset13.result, part.gives.values())]
    return ov.Model(outputs, list(part.takes.values()))


def weights(ops):
    floats = [
        op
        for op in ops
        if op.get_type_name() == "Constant" and op.get_element_type() == ov.Type.f32
    ]
    return sum(op.get_byte_size() for op in floats)

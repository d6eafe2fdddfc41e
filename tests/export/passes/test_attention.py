"""Attention in few operators: the numbers of torch, whatever the mask."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional as F

from edgedistill.teachers.base import ExportGraph
from edgedistill_export.trace import trace

N, HEADS, LENGTH, OTHER, WIDTH = 2, 3, 5, 7, 4


class Attention(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def forward(self, q, k, v, *mask):
        given = {"attn_mask": mask[0]} if mask else {}
        return F.scaled_dot_product_attention(q, k, v, **given, **self.settings)


def inputs(keys=OTHER, key_heads=HEADS):
    generator = torch.Generator().manual_seed(0)
    shapes = [(HEADS, LENGTH), (key_heads, keys), (key_heads, keys)]
    tensors = [torch.randn(N, *shape, WIDTH, generator=generator) for shape in shapes]
    return dict(zip("qkv", tensors, strict=True))


BOOL = torch.rand(N, 1, LENGTH, OTHER, generator=torch.Generator().manual_seed(1)) > 0.4
BOOL[0, 0, 2] = False  # a row without any key

CASES = {
    "plain": ({}, inputs()),
    "scaled": ({"scale": 0.3}, inputs()),
    "float mask": ({}, {**inputs(), "mask": torch.randn(N, 1, LENGTH, OTHER)}),
    "bool mask": ({}, {**inputs(), "mask": BOOL}),
    "causal": ({"is_causal": True}, inputs(keys=LENGTH)),
    "grouped": ({"enable_gqa": True}, inputs(key_heads=1)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_torch_s(name, tmp_path):
    settings, given = CASES[name]
    net = Attention(**settings)
    trace(ExportGraph(net, given, ("f",)), tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["f"], {key: value.numpy() for key, value in given.items()})
    np.testing.assert_allclose(found, net(*given.values()).numpy(), atol=1e-6)
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "net.onnx")).graph.node]
    assert kinds.count("Mul") <= 1
    assert kinds.count("Transpose") <= 1

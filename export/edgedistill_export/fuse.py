"""Fuse a whole student into one network: prompt and noise in, picture out, steps unrolled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.students.folder import Student
from edgedistill.teachers.base import ExportGraph

__all__ = ["fuse", "inside"]


def fuse(student: Student) -> ExportGraph:
    """Make the fused network, with inputs noise (N, draws, *sample shape) and the encoder's."""
    graphs = student.teacher.graphs()
    inputs = {"noise": torch.randn(2, student.table.draws, *student.teacher.sample_shape)}
    outputs = ["x0"]
    if "text_encoder" in graphs:
        inputs |= graphs["text_encoder"].inputs
    if "decoder" in graphs:
        outputs += graphs["decoder"].outputs
    return ExportGraph(_Fused(graphs, student.table), inputs, tuple(outputs))


def inside(layers: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Return paths inside the fused network of layers that are given by network."""
    return frozenset(f"{name}.{path}" for name, paths in layers.items() for path in paths)


class _Fused(nn.Module):
    """The networks under their names, connected by the step table."""

    def __init__(self, graphs: Mapping[str, ExportGraph], table: TorchStepTable) -> None:
        super().__init__()
        self.graphs, self.table = graphs, table
        for name, graph in graphs.items():
            self.add_module(name, graph.module)

    def forward(self, noise: Tensor, *tokens: Tensor, **named: Tensor) -> tuple[Tensor, ...]:
        # Core ML's tracer gives inputs by name, the others by position.
        cond = {}
        if tokens := (*tokens, *named.values()):
            found = self.get_submodule("text_encoder")(*tokens)
            tensors = found if isinstance(found, tuple) else (found,)
            cond = dict(zip(self.graphs["text_encoder"].outputs, tensors, strict=True))
        net = self.get_submodule("denoiser")
        x0 = self.table.sample(net, noise.unbind(1), cond)
        if "decoder" not in self.graphs:
            return (x0,)
        return x0, self.get_submodule("decoder")(x0)

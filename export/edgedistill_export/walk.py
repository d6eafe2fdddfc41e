"""The student's way from noise to picture, with every call of every network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from edgedistill.diffusion.sizes import shape_at
from edgedistill.students.folder import Student
from edgedistill.teachers.base import ExportGraph
from edgedistill_export.targets import Call
from edgedistill_runtime.manifest import FUSED
from edgedistill_runtime.noise import noise as draw_noise

__all__ = ["Recorded", "Walk", "calls_of", "networks", "walk"]


@dataclass
class Recorded:
    """One call of a network: inputs (N, ...) by name, and its outputs (N, ...) in order."""

    inputs: dict[str, Tensor]
    outputs: tuple[Tensor, ...]


@dataclass
class Walk:
    """A recorded run of the student: every call by network, and the final sample."""

    calls: dict[str, list[Recorded]] = field(default_factory=dict)
    samples: Tensor = field(default_factory=lambda: torch.empty(0))
    images: Tensor | None = None


class _Recorder(nn.Module):
    """A network that records its calls."""

    def __init__(self, net: nn.Module, calls: list[Recorded]) -> None:
        super().__init__()
        self.net, self.calls = net, calls

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        f: Tensor = self.net(x, t, **cond)
        self.calls.append(Recorded({"x": x, "t": t, **cond}, (f,)))
        return f


def networks(student: Student) -> dict[str, ExportGraph]:
    """Return the networks to compile, the denoiser for the student's times and sizes."""
    graphs, shape = dict(student.teacher.graphs()), student.teacher.sample_shape
    times = tuple(row.t for row in student.table.rows)
    graphs["denoiser"] = replace(graphs["denoiser"], times=times)
    if not student.table.grows:
        return graphs
    shapes = [shape_at(shape, row.size) for row in student.table.rows]
    height, width = (math.gcd(*(each[axis] for each in shapes)) for axis in (-2, -1))
    sides = _example(height, shape[-2]), _example(width, shape[-1])
    graph = graphs["denoiser"]
    inputs = {**graph.inputs, "x": torch.zeros(2, *shape[:-2], *sides)}
    return {**graphs, "denoiser": replace(graph, inputs=inputs, step=(height, width))}


def _example(step: int, full: int) -> int:
    """Return a side to trace multiples of `step` with: an odd multiple, which halves least often.

    A U-Net traced at a size where it must round also takes sizes where it need not, but not vice
    versa. The multiple is at least five, so that no inner side is 1, which the tracer treats as a
    special case.
    """
    times = full // step
    return step * max(5, times - 1 + times % 2)


@torch.no_grad()
def walk(
    student: Student,
    tokens: dict[str, Tensor] | None,
    noise: Sequence[Tensor],
    *,
    fused: bool = False,
) -> Walk:
    """Run the student in torch through the modules that are compiled.

    Args:
        student: The student.
        tokens: Result of `Teacher.tokenize`, or None for a student without text.
        noise: Tensors (N, ...) of `student.table.shapes`.
        fused: Record the single call of the fused network instead (see `fuse`).
    """
    way = Walk()
    graphs = student.teacher.graphs()
    cond: dict[str, Tensor] = {}
    if tokens is not None:
        encoder = graphs["text_encoder"]
        found = encoder.module(*tokens.values())
        tensors = found if isinstance(found, tuple) else (found,)
        cond = dict(zip(encoder.outputs, tensors, strict=True))
        way.calls["text_encoder"] = [Recorded(tokens, tensors)]
    calls = way.calls["denoiser"] = []
    net = student.net if fused else _Recorder(student.net, calls)
    way.samples = student.table.sample(net, noise, cond)
    if "decoder" in graphs:
        way.images = graphs["decoder"].module(way.samples)
        way.calls["decoder"] = [Recorded({"x0": way.samples}, (way.images,))]
    if fused:
        way.calls = {FUSED: [_whole(tokens or {}, noise, way)]}
    return way


def _whole(tokens: dict[str, Tensor], noise: Sequence[Tensor], way: Walk) -> Recorded:
    inputs = {"noise": torch.stack(list(noise), 1), **tokens}
    outputs = (way.samples,) if way.images is None else (way.samples, way.images)
    return Recorded(inputs, outputs)


def calls_of(
    student: Student, prompts: Sequence[str], seed: int, *, fused: bool = False, batch: int = 8
) -> dict[str, list[Call]]:
    """Record every call of every network while the student draws prompts, one sample a call.

    Args:
        student: The student.
        prompts: One prompt for each sample; for a student without text only their number counts.
        seed: Seed of the noise.
        fused: Record the calls of the fused network of `fuse`.
        batch: Number of samples drawn at a time.
    """
    teacher = student.teacher
    shapes = student.table.shapes(teacher.sample_shape)
    found: dict[str, list[Call]] = {}
    for start in range(0, len(prompts), batch):
        piece = list(prompts[start : start + batch])
        tokens = teacher.tokenize(piece) if "text_encoder" in teacher.graphs() else None
        drawn = draw_noise(seed, start, len(piece), shapes)
        way = walk(student, tokens, [torch.from_numpy(noise) for noise in drawn], fused=fused)
        for name, calls in way.calls.items():
            found.setdefault(name, []).extend(
                {key: value[row : row + 1].numpy() for key, value in call.inputs.items()}
                for call in calls
                for row in range(len(piece))
            )
    return found

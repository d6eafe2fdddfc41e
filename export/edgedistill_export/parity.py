"""Is the bundle still the student? Compared on the student's own way from noise to picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.student import Student
from edgedistill_runtime.manifest import Figures, Parity
from edgedistill_runtime.noise import noise as draw_noise
from edgedistill_runtime.pipeline import Pipeline, to_uint8

__all__ = [
    "EQUAL_DB",
    "FINAL_FLOORS_DB",
    "FLOORS_DB",
    "PROMPTS",
    "ParityError",
    "compare",
    "psnr",
    "shortfall",
]

Array: TypeAlias = NDArray[Any]

FLOORS_DB = {"fp32": 60.0, "fp16": 40.0}
"""The least PSNR of any graph on any sample, by precision: neither loses anything visible."""

FINAL_FLOORS_DB = {"fp32": 40.0, "fp16": 30.0}
"""The same for the sample at the end. Rounding grows from step to step, so less than one graph's,
but a wrong step table or tokenizer lands far below."""

EQUAL_DB = 200.0
"""What equal tensors count as: JSON has no infinity."""

PROMPTS = (
    "red apple",
    "a cat with heart eyes",
    "rocket",
    "birthday cake",
    "blue car",
    "green tree in the rain",
    "smiling face with sunglasses",
    "yellow star",
)

_SEED = 0


class ParityError(RuntimeError):
    """An export that is not its student; one line with the figures and the floor."""


def psnr(reference: Array, found: Array, peak: float | None = None) -> list[float]:
    """PSNR of each row in dB, between 0 and `EQUAL_DB`.

    Args:
        reference: (N, ...).
        found: As reference.
        peak: What the error is held against; by default the largest magnitude in reference.
    """
    peak = peak or float(np.abs(reference).max()) or 1.0
    difference = (found.astype(np.float64) - reference).reshape(len(reference), -1)
    error = np.sqrt(np.mean(difference**2, axis=1))
    # A NaN or infinity is as wrong as can be, and would pass a comparison with the floor.
    return [_decibel(e / peak) if math.isfinite(e) else 0.0 for e in error]


def _decibel(ratio: float) -> float:
    return EQUAL_DB if ratio == 0 else min(EQUAL_DB, max(0.0, -20 * math.log10(ratio)))


@dataclass
class _Call:
    """One call of a network by the student."""

    inputs: dict[str, Tensor]
    output: Tensor


@dataclass
class _Way:
    """What the student did: every call of every graph, and the sample it arrived at."""

    calls: dict[str, list[_Call]] = field(default_factory=dict)
    samples: Tensor = field(default_factory=lambda: torch.empty(0))
    images: Tensor | None = None


class _Recorder(nn.Module):
    """A network that remembers its calls."""

    def __init__(self, net: nn.Module, calls: list[_Call]) -> None:
        super().__init__()
        self.net, self.calls = net, calls

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        f: Tensor = self.net(x, t, **cond)
        self.calls.append(_Call({"x": x, "t": t, **cond}, f))
        return f


@torch.no_grad()
def _walk(student: Student, ids: Tensor | None, noise: Sequence[Tensor]) -> _Way:
    """Run the student in torch through the modules that were compiled."""
    way = _Way()
    graphs = student.teacher.graphs()
    cond: dict[str, Tensor] = {}
    if ids is not None:
        encoder = graphs["text_encoder"]
        cond = {encoder.outputs[0]: encoder.module(ids)}
        way.calls["text_encoder"] = [_Call({"input_ids": ids}, *cond.values())]
    calls = way.calls["denoiser"] = []
    way.samples = student.table.sample(_Recorder(student.net, calls), noise, cond)
    if "decoder" in graphs:
        way.images = graphs["decoder"].module(way.samples)
        way.calls["decoder"] = [_Call({"x0": way.samples}, way.images)]
    return way


def compare(student: Student, pipe: Pipeline, prompts: Sequence[str], precision: str) -> Parity:
    """Compare a loaded bundle with its student.

    Each graph runs on exactly the tensors the student's module saw; `final` compares the runtime's
    own way from prompts and noise to the picture (uint8) or the sample.

    Raises:
        ParityError: If the bundle's tokenizer gives other ids.
        ValueError: Without prompts.
    """
    if not prompts:
        raise ValueError("parity needs at least one prompt")
    ids = None
    if pipe.tokenizer is not None:
        ids = _ids(student, pipe, prompts)
    manifest = pipe.manifest
    draws = draw_noise(_SEED, 0, len(prompts), manifest.latent.shape, manifest.steps.draws)
    way = _walk(student, ids, [torch.from_numpy(draw.copy()) for draw in draws])
    graphs = {name: _graph_figures(pipe, name, calls) for name, calls in way.calls.items()}
    parity = Parity(
        samples=len(prompts),
        floor_db=FLOORS_DB[precision],
        final_floor_db=FINAL_FLOORS_DB[precision],
        passed=True,
        graphs=graphs,
        final=_final_figures(pipe, prompts, list(draws), way),
    )
    return replace(parity, passed=not _low(parity))


def shortfall(parity: Parity) -> str:
    """One line on what is under its floor."""
    return f"not equal to its student: {', '.join(_low(parity))}"


def _low(parity: Parity) -> list[str]:
    parts = [(name, figures, parity.floor_db) for name, figures in parity.graphs.items()]
    parts.append(("final", parity.final, parity.final_floor_db))
    return [
        f"{name} {figures.worst:.1f} dB (floor {floor:g})"
        for name, figures, floor in parts
        if figures.worst < floor
    ]


def _ids(student: Student, pipe: Pipeline, prompts: Sequence[str]) -> Tensor:
    assert pipe.tokenizer is not None
    # Every family with a text encoder has it.
    ids: Tensor = cast("Any", student.teacher).tokenize(list(prompts))
    differs = (pipe.tokenizer(prompts) != ids.numpy()).any(axis=1)
    if differs.any():
        raise ParityError(f"the tokenizer reads {prompts[int(differs.argmax())]!r} otherwise")
    return ids


def _graph_figures(pipe: Pipeline, name: str, calls: Sequence[_Call]) -> Figures:
    output = pipe.manifest.graphs[name].outputs[0].name
    values: list[float] = []
    for call in calls:
        inputs = {key: value.numpy() for key, value in call.inputs.items()}
        values += psnr(call.output.numpy(), pipe.graphs[name](**inputs)[output])
    return _figures(values)


def _final_figures(
    pipe: Pipeline, prompts: Sequence[str], noise: list[NDArray[np.float32]], way: _Way
) -> Figures:
    if pipe.tokenizer is None:
        result = pipe.samples(len(prompts), noise=noise)
    else:
        result = pipe(prompts, noise=noise)
    if way.images is None or result.images is None:
        return _figures(psnr(way.samples.numpy(), result.samples))
    return _figures(psnr(to_uint8(way.images.numpy()), result.images, peak=255.0))


def _figures(values: Sequence[float]) -> Figures:
    return Figures(mean=float(np.mean(values)), worst=min(values))

"""Sensitivity scan: the measured cost of quantizing each layer, in the picture.

One layer at a time is computed in low precision while the student draws, and its pictures are
compared with the float student's. Mean squared errors of single layers add up well, so a budget is
met by keeping the costliest layers in float until the sum of the rest fits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.common.decibels import psnr
from edgedistill.common.files import read_json, write_json
from edgedistill.common.progress import Progress
from edgedistill.networks.fake_quant import SCHEMES, FakeQuantize, FakeQuantScheme, layers
from edgedistill.students.folder import Student
from edgedistill_export.walk import walk
from edgedistill_runtime.noise import noise as draw_noise
from edgedistill_runtime.pipeline import to_uint8

__all__ = ["Cost", "Scan", "keep_for_psnr", "keep_for_size", "predicted", "scan"]

SCHEMA_VERSION = 2
_SEED = 2


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of quantizing one layer.

    Attributes:
        graph: text_encoder, denoiser or decoder.
        layer: Path of the layer in the graph's module.
        weights: Number of values in its weight.
        bits: Bits of each value.
        mse: Mean squared error of the sample, with the samples' peak as 1.
    """

    graph: str
    layer: str
    weights: int
    bits: int
    mse: float

    @property
    def psnr(self) -> float:
        """The error as PSNR in dB."""
        return psnr(math.sqrt(self.mse))


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Costs of a student's layers, the costliest first.

    Attributes:
        student: The student's sha256.
        scheme: A key of `fake_quant.SCHEMES`.
        prompts: Number of samples drawn.
        together: Mean squared error with every layer quantized.
        layers: Costs of the layers.
        other: Number of values in the networks outside layers (norms, embeddings, biases).
    """

    student: str
    scheme: str
    prompts: int
    together: float
    layers: tuple[Cost, ...]
    other: int

    def write(self, path: Path) -> None:
        """Write the scan as JSON, with each cost also in dB."""
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        data["layers"] = [{**asdict(cost), "psnr": cost.psnr} for cost in self.layers]
        write_json(path, {**data, "together_psnr": psnr(math.sqrt(self.together))})

    @classmethod
    def read(cls, path: Path) -> Scan:
        """Read the file of `write`; ValueError names the file and the key."""
        data = read_json(path)
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"{path}: schema_version {data.get('schema_version')!r} is unknown")
        try:
            costs = tuple(
                Cost(**{k: row[k] for k in ("graph", "layer", "weights", "bits", "mse")})
                for row in data["layers"]
            )
            named = ("student", "scheme", "prompts", "together", "other")
            return cls(layers=costs, **{key: data[key] for key in named})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: no sensitivity scan: {error}") from None


def scan(
    student: Student,
    scheme: str,
    prompts: Sequence[str],
    progress: Progress | None = None,
) -> Scan:
    """Measure the cost of every Linear and Conv2d that the student uses.

    Args:
        student: The student.
        scheme: A key of `SCHEMES`.
        prompts: Prompts to draw; for a student without text only their number counts.
        progress: Called as progress(done, total, layer).

    Raises:
        ValueError: If the scheme is unknown, or there are no prompts.
    """
    if not prompts:
        raise ValueError("a sensitivity scan needs at least one prompt")
    chosen = SCHEMES[scheme]
    draw = _drawer(student, prompts)
    used = _used(student, draw)
    truth = draw()

    def cost(modules: Sequence[nn.Module]) -> float:
        return _error(truth, _quantized(draw, modules, chosen))

    costs = []
    for done, ((graph, path), module) in enumerate(used.items()):
        if progress:
            progress(done, len(used), path)
        size = sum(p.numel() for n, p in module.named_parameters() if n == "weight")
        bits = SCHEMES[scheme].bits(module.get_parameter("weight"))
        costs.append(Cost(graph=graph, layer=path, weights=size, bits=bits, mse=cost([module])))
    graphs = student.teacher.graphs().values()
    total = sum({id(p): p.numel() for g in graphs for p in g.module.parameters()}.values())
    if progress:
        progress(len(used), len(used), "done")
    return Scan(
        student=student.sha256,
        scheme=scheme,
        prompts=len(prompts),
        together=cost(list(used.values())),
        layers=tuple(sorted(costs, key=lambda c: -c.mse)),
        other=total - sum(c.weights for c in costs),
    )


def keep_for_psnr(found: Scan, decibel: float) -> dict[str, frozenset[str]]:
    """Choose layers to keep in floating point, by graph, to reach a PSNR in dB.

    Raises:
        ValueError: If the budget is 0 or less.
    """
    if decibel <= 0:
        raise ValueError(f"a PSNR of {decibel:g} dB is no budget; name a positive one")
    for count in range(len(found.layers)):
        if _predicted(found, found.layers[:count]) >= decibel:
            return _by_graph(found.layers[:count])
    return _by_graph(found.layers)


def predicted(found: Scan, keep: Mapping[str, frozenset[str]]) -> float:
    """Predict the sample's mean PSNR with these layers in floating point, in dB."""
    kept = [cost for cost in found.layers if cost.layer in keep.get(cost.graph, ())]
    return _predicted(found, kept)


def _predicted(found: Scan, kept: Sequence[Cost]) -> float:
    # Costs of single layers do not quite add up; the measured cost of all gives the correction.
    total = sum(cost.mse for cost in found.layers)
    gone = sum(cost.mse for cost in kept) / total if total else 0.0
    return psnr(math.sqrt(max(0.0, found.together * (1 - gone))))


def keep_for_size(found: Scan, megabytes: float) -> dict[str, frozenset[str]]:
    """Choose layers to keep in float32, by graph, with all weights within a size in MiB.

    Layers with the most error for each byte are kept first.

    Raises:
        ValueError: If even with every layer quantized the weights are larger.
    """
    layers_ = sum(cost.weights * cost.bits / 8 for cost in found.layers)
    least = (4 * found.other + layers_) / 2**20
    room = (megabytes - least) * 2**20
    if room < 0:
        raise ValueError(
            f"{megabytes:g} MiB is too small: all layers quantized take {least:.1f} MiB"
        )
    kept = []
    for cost in sorted(found.layers, key=lambda c: -c.mse / max(c.weights, 1)):
        extra = cost.weights * (4 - cost.bits / 8)
        if extra <= room:
            kept.append(cost)
            room -= extra
    return _by_graph(kept)


Draw = Callable[[], NDArray[Any]]


def _drawer(student: Student, prompts: Sequence[str], batch: int = 8) -> Draw:
    teacher = student.teacher
    shapes = student.table.shapes(teacher.sample_shape)
    pieces: list[tuple[dict[str, Tensor] | None, list[Tensor]]] = []
    for start in range(0, len(prompts), batch):
        lines = list(prompts[start : start + batch])
        tokens = teacher.tokenize(lines) if "text_encoder" in teacher.graphs() else None
        drawn = draw_noise(_SEED, start, len(lines), shapes)
        pieces.append((tokens, [torch.from_numpy(noise.copy()) for noise in drawn]))

    def draw() -> NDArray[Any]:
        ways = [walk(student, tokens, noise) for tokens, noise in pieces]
        drawn = [
            to_uint8(way.images.numpy()).astype(np.float32) / 255
            if way.images is not None
            else way.samples.numpy()
            for way in ways
        ]
        return np.concatenate(drawn)

    return draw


def _quantized(draw: Draw, modules: Sequence[nn.Module], scheme: FakeQuantScheme) -> NDArray[Any]:
    with FakeQuantize(modules, scheme):
        return draw()


def _used(student: Student, draw: Draw) -> dict[tuple[str, str], nn.Module]:
    """Return the layers that a draw calls, by graph and path."""
    found = {
        (name, path): module
        for name, graph in student.teacher.graphs().items()
        for path, module in layers(graph.module).items()
    }
    called: set[int] = set()
    with contextlib.ExitStack() as stack:
        for module in found.values():
            hook = module.register_forward_pre_hook(lambda m, _: called.add(id(m)))
            stack.callback(hook.remove)
        draw()
    return {key: module for key, module in found.items() if id(module) in called}


def _error(truth: NDArray[Any], drawn: NDArray[Any]) -> float:
    peak = float(np.abs(truth).max()) or 1.0
    return float(np.mean(((drawn - truth) / peak).astype(np.float64) ** 2))


def _by_graph(costs: Sequence[Cost]) -> dict[str, frozenset[str]]:
    graphs = {cost.graph for cost in costs}
    return {g: frozenset(c.layer for c in costs if c.graph == g) for g in sorted(graphs)}

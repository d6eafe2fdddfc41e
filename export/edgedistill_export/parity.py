"""Parity: compare a bundle with its student along the student's way from noise to picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.common import decibels
from edgedistill.students.folder import Student
from edgedistill_export.prompts import home_of_teacher
from edgedistill_export.walk import Recorded, Walk, walk
from edgedistill_runtime.manifest import FUSED, Figures, Parity
from edgedistill_runtime.noise import noise as draw_noise
from edgedistill_runtime.pipeline import Pipeline, to_uint8

if TYPE_CHECKING:
    from edgedistill.networks.clip import Features

__all__ = [
    "TIERS",
    "Comparison",
    "ParityError",
    "Tier",
    "compare",
    "find_features",
    "psnr",
    "save_worst",
    "shortfall",
]

Array: TypeAlias = NDArray[Any]

_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Floors of a precision.

    Attributes:
        graph_db: Lowest PSNR of any graph on any sample.
        final_db: Lowest PSNR of the final sample. Rounding grows from step to step, so it is below
            one graph's, but a wrong step table or tokenizer is far below it.
        text_image: Lowest ratio of text-image scores.
        samples: Number of samples compared.
    """

    graph_db: float = 0.0
    final_db: float
    text_image: float = 0.0
    samples: int = 8


TIERS = {
    "fp32": Tier(graph_db=60.0, final_db=40.0),
    "fp16": Tier(graph_db=40.0, final_db=30.0),
    "bf16": Tier(graph_db=25.0, final_db=25.0),
    "int8": Tier(final_db=25.0, text_image=0.98, samples=32),
    "int4": Tier(final_db=15.0, text_image=0.95, samples=32),
}
"""Floors by tier. fp32 and fp16 lose nothing visible, so each graph is compared by its tensors;
bf16 has three digits; below, only the picture counts."""


class ParityError(RuntimeError):
    """Raised for an export that differs from its student; one line with figures and floor.

    Attributes:
        parity: The parity figures, as far as there are any.
    """

    def __init__(self, message: str, parity: Parity | None = None) -> None:
        super().__init__(message)
        self.parity = parity


@dataclass(frozen=True)
class Comparison:
    """Parity figures, and the two samples that differ most.

    Attributes:
        parity: The parity figures.
        worst: (student's, bundle's) picture (H, W, 3) bytes, or None without pictures.
    """

    parity: Parity
    worst: tuple[Array, Array] | None


def psnr(reference: Array, found: Array, peak: float | None = None) -> list[float]:
    """Return the PSNR of each row in dB (see `decibels.psnr`).

    Args:
        reference: Reference rows (N, ...).
        found: Rows to compare, shaped as `reference`.
        peak: Peak value of the PSNR; by default the largest magnitude in `reference`.
    """
    return [decibels.psnr(error) for error in _errors(reference, found, peak)]


def _errors(reference: Array, found: Array, peak: float | None = None) -> list[float]:
    """Return the RMS error of each row over the peak; see `psnr`."""
    peak = peak or float(np.abs(reference).max()) or 1.0
    with np.errstate(invalid="ignore"):
        difference = (found.astype(np.float64) - reference).reshape(len(reference), -1)
    return [float(rmse) / peak for rmse in np.sqrt(np.mean(difference**2, axis=1))]


def find_features(student: Student) -> Features | None:
    """Find the CLIP model of the recipe's evaluation, or the one shipped with the teacher."""
    from edgedistill.networks.clip import Features

    named = (student.info.recipe.get("evaluate") or {}).get("features")
    home = home_of_teacher(student)
    if named:
        return Features(str(named))
    if home and (home / "clip").is_dir():
        return Features(str(home / "clip"))
    return None


def compare(
    student: Student,
    pipe: Pipeline,
    prompts: Sequence[str],
    tier: str,
    features: Features | None = None,
) -> Comparison:
    """Compare a loaded bundle with its student.

    Each graph runs on exactly the inputs of the student's module; `final` compares the result of
    the whole runtime, from prompts and noise to the picture (uint8) or the sample.

    Args:
        student: The student.
        pipe: The bundle, or its proof.
        prompts: Prompts to draw; for a student without text only their number counts.
        tier: A key of `TIERS`.
        features: CLIP model that judges the pictures; None leaves these figures out.

    Raises:
        ParityError: If the bundle's tokenizer gives different ids.
        ValueError: If there are no prompts.
    """
    if not prompts:
        raise ValueError("parity needs at least one prompt")
    tokens = None if pipe.tokenizer is None else _tokens(student, pipe, prompts)
    manifest, floors = pipe.manifest, TIERS[tier]
    shapes = manifest.steps.shapes(manifest.latent.shape)
    draws = draw_noise(_SEED, 0, len(prompts), shapes)
    noise = [torch.from_numpy(draw.copy()) for draw in draws]
    way = walk(student, tokens, noise, fused=FUSED in pipe.graphs)
    graphs = {name: _graph_figures(pipe, name, calls) for name, calls in way.calls.items()}
    ours, theirs, peak, finite = _finals(pipe, prompts, draws, way)
    final = [
        each if whole else math.inf
        for each, whole in zip(_errors(ours, theirs, peak), finite, strict=True)
    ]
    worst = int(np.argmax(np.nan_to_num(final, nan=math.inf)))
    perceptual, ratio = None, None
    if features is not None and peak is not None:
        perceptual = features.distance(ours, theirs)
        ratio = None if tokens is None else _text_ratio(features, prompts, ours, theirs)
    parity = Parity(
        tier=tier,
        backend=manifest.backend,
        samples=len(prompts),
        floor_db=floors.graph_db,
        final_floor_db=floors.final_db,
        text_image_floor=floors.text_image,
        passed=True,
        graphs=graphs,
        final=_figures(final),
        worst_prompt=prompts[worst] if tokens is not None else "",
        perceptual=perceptual,
        text_image=ratio,
    )
    parity = replace(parity, passed=not _low(parity))
    return Comparison(parity, None if peak is None else (ours[worst], theirs[worst]))


def shortfall(parity: Parity) -> str:
    """Describe in one line the figures below their floor."""
    return f"not equal to its student: {', '.join(_low(parity))}"


def _low(parity: Parity) -> list[str]:
    parts = [(name, figures, parity.floor_db) for name, figures in parity.graphs.items()]
    parts.append(("final", parity.final, parity.final_floor_db))
    low = [
        f"{name} {decibels.decibels(figures.worst, ' dB')} (floor {floor:g})"
        for name, figures, floor in parts
        if figures.worst < floor
    ]
    if parity.text_image is not None and parity.text_image < parity.text_image_floor:
        low.append(f"text-image score {parity.text_image:.3f} (floor {parity.text_image_floor:g})")
    return low


def _tokens(student: Student, pipe: Pipeline, prompts: Sequence[str]) -> dict[str, Tensor]:
    assert pipe.tokenizer is not None
    tokens = student.teacher.tokenize(list(prompts))
    found = pipe.tokenizer(prompts)
    for name, ids in tokens.items():
        differs = (found[name] != ids.numpy()).any(axis=1)
        if differs.any():
            prompt = prompts[int(differs.argmax())]
            raise ParityError(f"the tokenizer reads {prompt!r} otherwise ({name})")
    return tokens


def _graph_figures(pipe: Pipeline, name: str, calls: Sequence[Recorded]) -> Figures:
    errors: list[float] = []
    for call in calls:
        found = pipe.graphs[name](**{key: value.numpy() for key, value in call.inputs.items()})
        for port, wanted in zip(pipe.manifest.graphs[name].outputs, call.outputs, strict=True):
            errors += _errors(wanted.numpy(), found[port.name])
    return _figures(errors)


def _finals(
    pipe: Pipeline, prompts: Sequence[str], noise: list[NDArray[np.float32]], way: Walk
) -> tuple[Array, Array, float | None, Array]:
    """Return (student's, bundle's) samples, 255 for pictures, and which are finite (N,)."""
    if pipe.tokenizer is None:
        result = pipe.samples(len(prompts), noise=noise)
    else:
        result = pipe(prompts, noise=noise)
    # Values that are not finite do not show in a picture of bytes, so check its sample.
    finite = np.asarray(np.isfinite(result.samples).reshape(len(prompts), -1).all(axis=1))
    if way.images is None or result.images is None:
        return way.samples.numpy(), result.samples, None, finite
    return to_uint8(way.images.numpy()), result.images, 255.0, finite


def _text_ratio(features: Features, prompts: Sequence[str], ours: Array, theirs: Array) -> float:
    texts = features.texts(prompts)
    scores = [features.score(features.images(pictures), texts) for pictures in (ours, theirs)]
    return scores[1] / scores[0]


def _figures(errors: Sequence[float]) -> Figures:
    """Return the PSNR of the mean squared error over all samples, and that of the worst one.

    A mean of the PSNRs would be decided by the 200 dB that stand for equal samples.
    """
    whole = math.sqrt(float(np.mean(np.square(errors))))
    return Figures(mean=decibels.psnr(whole), worst=min(map(decibels.psnr, errors)))


def save_worst(comparison: Comparison, path: Path) -> None:
    """Write the worst pair side by side, the student's on the left, at least 256 pixels high."""
    if comparison.worst is None:
        return
    from PIL import Image

    pair = np.concatenate(comparison.worst, axis=1)
    factor = max(1, 256 // len(pair))
    Image.fromarray(pair.repeat(factor, 0).repeat(factor, 1)).save(path)

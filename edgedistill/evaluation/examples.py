"""Example pictures: nearest training pictures, and samples farthest from the teacher's.

EVALUATION/examples.json     {"schema_version", "nearest": [...], "worst": [...]}
EVALUATION/*.png             the pictures that it names
EVALUATION/nearest.png       a sheet: student's sample | nearest training picture
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgedistill.common.files import atomic_folder, write_json
from edgedistill.common.pictures import grid
from edgedistill.evaluation.figures import errors

__all__ = ["NEAREST", "WORST", "Example", "nearest_examples", "worst_examples", "write_examples"]

NEAREST, WORST = 16, 8
SCHEMA = 1


@dataclass(frozen=True)
class Example:
    """A pair of pictures.

    Attributes:
        caption: Caption of the pair, "" where there is none.
        left: The first picture.
        right: The second.
        facts: Numbers and words about the pair.
    """

    caption: str
    left: NDArray[np.uint8]
    right: NDArray[np.uint8]
    facts: dict[str, Any]


def worst_examples(
    ours: NDArray[np.uint8], theirs: NDArray[np.uint8], captions: Sequence[str]
) -> list[Example]:
    """Return the student's pictures farthest from the teacher's of equal noise, worst first.

    Args:
        ours: The student's pictures.
        theirs: The teacher's pictures.
        captions: Caption of each picture.
    """
    gaps = errors(ours, theirs)
    order = np.argsort(-gaps)[:WORST].tolist()
    return [
        Example(captions[i], theirs[i], ours[i], {"rmse": float(np.sqrt(gaps[i]))}) for i in order
    ]


def nearest_examples(
    ours: NDArray[np.uint8],
    training: NDArray[np.uint8],
    index: Sequence[int],
    copies: Sequence[bool],
    captions: Sequence[str],
    theirs: Sequence[str],
) -> list[Example]:
    """Return the student's first pictures, each with its nearest training picture in features.

    Args:
        ours: The student's pictures.
        training: Training pictures of the same size.
        index: Index of each one's nearest training picture.
        copies: Whether each is nearer than `memory.QUANTILE` allows.
        captions: Captions of the student's pictures.
        theirs: Captions of the training pictures.
    """
    found = []
    for i in range(min(NEAREST, len(ours))):
        at = index[i]
        gap = float(np.sqrt(errors(ours[i : i + 1], training[at : at + 1])[0]))
        facts = {"rmse": gap, "counts_as_copy": copies[i], "nearest_caption": theirs[at]}
        found.append(Example(captions[i], ours[i], training[at], facts))
    return found


def write_examples(folder: Path, nearest: Sequence[Example], worst: Sequence[Example]) -> None:
    """Write a folder of examples whole or not at all; an older one is replaced."""
    with atomic_folder(folder) as work:
        listed: dict[str, Any] = {"schema_version": SCHEMA}
        for kind, examples in (("nearest", nearest), ("worst", worst)):
            listed[kind] = [
                _written(work, f"{kind}-{i:02d}", example) for i, example in enumerate(examples)
            ]
        write_json(work / "examples.json", listed)
        if nearest:
            pairs = [picture for example in nearest for picture in (example.left, example.right)]
            grid(np.stack(pairs)).save(work / "nearest.png")


def _written(folder: Path, name: str, example: Example) -> dict[str, Any]:
    files = {side: f"{name}-{side}.png" for side in ("left", "right")}
    Image.fromarray(example.left).save(folder / files["left"])
    Image.fromarray(example.right).save(folder / files["right"])
    return {"caption": example.caption, **files, **example.facts}

"""students.json: which of several students draws a condition.

    {"schema_version": 1, "kind": "label", "labels": [[0, 1], [2, 3]]}
    {"schema_version": 1, "kind": "prompt", "centroids": [[0.1, ...], [0.3, ...]]}

beside the folders 0, 1, ... of the students, or of their bundles. A condition is read from what
the text encoder returns first: the number of a class, or the states of a prompt's tokens, of which
the mean is taken.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime.manifest import BundleError

__all__ = ["ROUTES", "Routes", "pooled"]

ROUTES = "students.json"
SCHEMA_VERSION = 1
KEYS = {"label": "labels", "prompt": "centroids"}
"""By kind, the key of what belongs to each student."""

Kind: TypeAlias = Literal["label", "prompt"]


def pooled(states: NDArray[Any]) -> NDArray[np.float64]:
    """States of tokens (N, L, D) -> their means (N, D)."""
    means: NDArray[np.float64] = states.mean(1, dtype=np.float64)
    return means


@dataclass(frozen=True)
class Routes:
    """Which student draws a condition.

    Attributes:
        kind: Whether conditions are classes or prompts.
        parts: Of each student its classes, or the centroid of its prompts.
    """

    kind: Kind
    parts: tuple[tuple[float, ...], ...]

    def of(self, encoded: NDArray[Any]) -> NDArray[np.int64]:
        """Students of conditions: of classes (N,), or of tokens' states (N, L, D) -> (N,).

        Raises:
            ValueError: If a class is no student's.
        """
        if self.kind == "prompt":
            return self.nearest(pooled(encoded))
        owner = {int(label): part for part, own in enumerate(self.parts) for label in own}
        found = []
        for label in np.rint(encoded).astype(np.int64).tolist():
            if label not in owner:
                raise ValueError(f"class {label} belongs to none of {len(self.parts)} students")
            found.append(owner[label])
        return np.array(found, np.int64)

    def nearest(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices of the centroids nearest to points (N, D), the first of equals."""
        gaps = points[:, None, :] - np.array(self.parts)[None]
        nearest: NDArray[np.int64] = np.square(gaps).sum(-1).argmin(-1)
        return nearest

    @classmethod
    def read(cls, folder: str | Path) -> Routes:
        """Read the file in `folder`.

        Raises:
            BundleError: naming the file and the key that is wrong.
        """
        path = Path(folder) / ROUTES
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise BundleError(f"{path}: no such file: no group of students") from None
        except ValueError as error:
            raise BundleError(f"{path}: not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            raise BundleError(f"{path}: schema_version: {SCHEMA_VERSION} expected")
        kind = data.get("kind")
        if kind not in KEYS:
            raise BundleError(f"{path}: kind: {kind!r}; one of {', '.join(KEYS)} expected")
        key = KEYS[kind]
        try:
            parts = tuple(tuple(map(float, own)) for own in data[key])
            even = kind == "label" or len({len(own) for own in parts}) == 1
            if not (parts and even and all(parts) and np.isfinite(np.concatenate(parts)).all()):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise BundleError(f"{path}: {key}: numbers of each student expected") from None
        return cls(kind, parts)

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        whole = self.kind == "label"
        parts = [[int(x) for x in own] if whole else list(own) for own in self.parts]
        return {"schema_version": SCHEMA_VERSION, "kind": self.kind, KEYS[self.kind]: parts}

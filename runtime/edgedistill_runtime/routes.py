"""students.json: which of several students draws a condition.

    {"schema_version": 2, "kind": "label", "labels": [[0, 1], [2, 3]], "sha256": "..."}
    {"schema_version": 2, "kind": "prompt", "centroids": [[0.1, ...], ...], "sha256": "..."}

beside the folders 0, 1, ... of the students, or of their bundles. The hash is that of the other
keys as JSON with sorted keys and no spaces; schema 1 has none. A condition is read from what
the text encoder returns first: the number of a class, or the states of a prompt's tokens, of which
the mean is taken.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime import strict_json
from edgedistill_runtime.manifest import BundleError
from edgedistill_runtime.sense import Problem
from edgedistill_runtime.strict_json import short

__all__ = ["ROUTES", "Routes", "pooled"]

ROUTES = "students.json"
SCHEMA_VERSION = 2
READABLE = (1, 2)
HASHED_SINCE = 2
"""Version from which on the file holds its own hash."""

KEYS = {"label": "labels", "prompt": "centroids"}
"""By kind, the key of what belongs to each student."""

_log = logging.getLogger(__name__)

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
            data = strict_json.parse(strict_json.read_bytes(path))
        except FileNotFoundError:
            raise BundleError(f"{path}: no such file: no group of students") from None
        except OSError as error:
            raise BundleError(f"{path}: not readable: {error.strerror}") from None
        except ValueError as error:
            raise BundleError(f"{path}: not JSON: {error}") from None
        try:
            routes = cls(*_check(data))
        except Problem as problem:
            raise BundleError(f"{path}: {problem}") from None
        if data["schema_version"] < HASHED_SINCE:
            _tell_old(path, data["schema_version"])
        return routes

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        whole = self.kind == "label"
        parts = [[int(x) for x in own] if whole else list(own) for own in self.parts]
        data = {"schema_version": SCHEMA_VERSION, "kind": self.kind, KEYS[self.kind]: parts}
        return {**data, "sha256": _sha256(data)}


def _sha256(data: Mapping[str, Any]) -> str:
    """Of all keys but the hash itself."""
    rest = {key: value for key, value in data.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@functools.cache
def _tell_old(path: Path, version: int) -> None:
    """Say once in one line what an older file lacks."""
    _log.warning("%s: schema_version %d of an older edgedistill, under no hash", path, version)


MAX_STUDENTS = 1000
MAX_LABEL = 2**31
MAX_COORDINATE = 1e30


def _check_version(data: Any) -> None:
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or version not in READABLE:
        raise Problem(f"schema_version: {short(version)}; one of {READABLE} expected")
    if version >= HASHED_SINCE and data.get("sha256") != _sha256(data):
        raise Problem("damaged or changed: it is not what its sha256 says")


def _check(data: Any) -> tuple[Kind, tuple[tuple[float, ...], ...]]:
    """Kind and parts of the file's content; Problem says what is wrong with it."""
    _check_version(data)
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KEYS:
        raise Problem(f"kind: {short(kind)}; one of {', '.join(KEYS)} expected")
    key = KEYS[kind]
    parts = data.get(key)
    if not isinstance(parts, list) or not 0 < len(parts) <= MAX_STUDENTS:
        raise Problem(f"{key}: numbers of each student expected, for 1 to {MAX_STUDENTS} of them")
    for i, own in enumerate(parts):
        if not isinstance(own, list) or not own:
            raise Problem(f"{key}[{i}]: numbers expected, found {short(own)}")
        for number in own:
            whole = type(number) is int and 0 <= number < MAX_LABEL
            finite = type(number) in (int, float) and abs(number) <= MAX_COORDINATE
            if not (whole if kind == "label" else finite):
                what = "a class" if kind == "label" else "a finite number"
                raise Problem(f"{key}[{i}]: {what} expected, found {short(number)}")
    if kind == "prompt" and len({len(own) for own in parts}) > 1:
        raise Problem(f"{key}: equally many numbers for each student expected")
    numbers = [number for own in parts for number in own]
    if kind == "label" and len({*numbers}) < len(numbers):
        raise Problem(f"{key}: a class is there twice")
    return cast("Kind", kind), tuple(tuple(map(float, own)) for own in parts)

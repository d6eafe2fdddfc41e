"""Training figures: metrics.jsonl, one line an interval, and trackers that get the same."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

from torch import Tensor

from edgedistill.common.disk import naming
from edgedistill.common.files import write_text
from edgedistill.training.trackers import Trackers

__all__ = ["Metrics", "read_metrics"]


FILE = "metrics.jsonl"


class Metrics:
    """Collector of scalars, which writes their means over an interval.

    Args:
        folder: The run dir.
        step: Step at which the run (re)starts; later lines of an interrupted run are dropped.
        trackers: Started trackers, which get every line.

    Attributes:
        path: Path of metrics.jsonl.
        damaged: Number of its lines that could not be read and are left out.
    """

    def __init__(self, folder: Path, step: int, trackers: Trackers | None = None) -> None:
        self.path = folder / FILE
        lines, self.damaged = _read(self.path)
        kept = [line for line in lines if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._trackers = trackers
        self._values: dict[str, list[Tensor | float]] = defaultdict(list)

    def add(self, name: str, value: Tensor | float) -> None:
        """Record a scalar; tensors are only read at `flush`, so as not to wait for a device."""
        self._values[name].append(value)

    def flush(self, step: int, **facts: float) -> dict[str, float]:
        """Write the interval that ends after `step` steps and return it.

        Values that are not finite are excluded from the means; a name without a finite value is
        left out.
        """
        means = {}
        for name, values in self._values.items():
            finite = [value for value in map(float, values) if math.isfinite(value)]
            if finite:
                means[name] = sum(finite) / len(finite)
        self._values.clear()
        line = {"step": step, **facts, **means}
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._trackers:
            self._trackers.log({**facts, **means}, step)
        return line

    def close(self) -> None:
        """Finish the trackers' runs."""
        if self._trackers:
            self._trackers.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read the lines of a run's metrics.jsonl; damaged or incomplete ones are left out."""
    return _read(folder / FILE)[0]


def _read(path: Path) -> tuple[list[dict[str, float]], int]:
    """Return the complete lines, and the number of damaged ones besides the last."""
    texts = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    lines = [(text, _parse(text)) for text in texts]
    damaged = sum(1 for text, line in lines[:-1] if line is None and text.strip())
    return [line for _, line in lines if line is not None], damaged


def _parse(text: bytes) -> dict[str, float] | None:
    """Parse a line of figures; None if it is malformed."""
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    whole = isinstance(line, dict) and isinstance(line.get("step"), int)
    if not whole or not all(_is_number(value) for value in line.values()):
        return None
    return dict(line)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

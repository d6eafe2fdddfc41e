"""Training figures: metrics.jsonl (one line an interval) and TensorBoard beside it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from edgedistill.files import write_text

__all__ = ["Metrics", "read_metrics"]


class Metrics:
    """Collects scalars and writes their means over an interval.

    Args:
        folder: The run dir.
        step: Where the run (re)starts; later lines of an interrupted run are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )
        self._values: dict[str, list[Tensor | float]] = defaultdict(list)

    def add(self, name: str, value: Tensor | float) -> None:
        """Remember a scalar; tensors are read only at `flush`, so as not to wait for a device."""
        self._values[name].append(value)

    def flush(self, step: int, **facts: float) -> dict[str, float]:
        """Write the interval that ends after `step` steps and return it."""
        means = {k: sum(float(v) for v in vs) / len(vs) for k, vs in self._values.items()}
        self._values.clear()
        line = {"step": step, **facts, **means}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            self._board.add_scalar(name, value, step)
        return line

    def close(self) -> None:
        """Finish the TensorBoard file."""
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl; a torn last line is left out."""
    path = folder / "metrics.jsonl"
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines

"""Clean latents that come with a teacher, and the pictures they were encoded from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from edgedistill.teachers.base import Teacher

__all__ = ["Captioned", "Latents", "to_float"]


class Captioned:
    """Rows with one caption each, drawn with replacement.

    Args:
        captions: Captions of all rows, in order.
        teacher: Encoder of the captions.
    """

    def __init__(self, captions: Sequence[str], teacher: Teacher) -> None:
        self.captions, self.teacher = list(captions), teacher
        self._rows: Tensor | None = None

    def only(self, rows: Sequence[int]) -> None:
        """Draw only from these rows from now on."""
        self._rows = torch.tensor(list(rows))

    def prompts(self, count: int, generator: torch.Generator) -> list[str]:
        """Return captions of what `draw` gives for a generator in the same state."""
        return [self.captions[i] for i in self._index(count, generator).tolist()]

    def _encoded(self, index: Tensor) -> dict[str, Tensor]:
        return self.teacher.encode([self.captions[i] for i in index.tolist()])

    def _index(self, count: int, generator: torch.Generator) -> Tensor:
        if self._rows is None:
            return torch.randint(len(self.captions), (count,), generator=generator)
        return self._rows[torch.randint(len(self._rows), (count,), generator=generator)]


class Latents(Captioned):
    """Clean latents with one caption each.

    Args:
        latents: Latents (n, ...).
        captions: One caption for each latent.
        teacher: Encodes the captions.
        originals: A file with the `pictures` (n, channels, height, width), uint8, that the latents
            were encoded from; None if they are not known.
    """

    def __init__(
        self,
        latents: Tensor,
        captions: Sequence[str],
        teacher: Teacher,
        originals: Path | None = None,
    ) -> None:
        if len(latents) != len(captions):
            raise ValueError(f"{len(latents)} latents but {len(captions)} captions")
        super().__init__(captions, teacher)
        self.latents = latents
        self._pictures = None
        if originals is not None:
            with safe_open(originals, "pt") as file:
                self._pictures = file.get_tensor("pictures")  # a view of the mapped file

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw `count` latents with replacement, with their encoded captions."""
        index = self._index(count, generator)
        return self.latents[index], self._encoded(index)

    def originals(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Return pictures that were encoded to what `draw` gives for a generator in this state."""
        if self._pictures is None:
            return None
        return to_float(self._pictures[self._index(count, generator)])


def to_float(pictures: Tensor) -> Tensor:
    """Convert uint8 to [-1, 1]."""
    return pictures.float() / 127.5 - 1

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
    """Rows with a caption each, drawn with replacement.

    Args:
        captions: Of all rows in order.
        teacher: Encodes them.
    """

    def __init__(self, captions: Sequence[str], teacher: Teacher) -> None:
        self.captions, self.teacher = list(captions), teacher
        self._rows: Tensor | None = None

    def only(self, rows: Sequence[int]) -> None:
        """Draw from these rows alone from now on."""
        self._rows = torch.tensor(list(rows))

    def prompts(self, count: int, generator: torch.Generator) -> list[str]:
        """Captions of what `draw` gives of a generator in the same state."""
        return [self.captions[i] for i in self._index(count, generator).tolist()]

    def _encoded(self, index: Tensor) -> dict[str, Tensor]:
        return self.teacher.encode([self.captions[i] for i in index.tolist()])

    def _index(self, count: int, generator: torch.Generator) -> Tensor:
        if self._rows is None:
            return torch.randint(len(self.captions), (count,), generator=generator)
        return self._rows[torch.randint(len(self._rows), (count,), generator=generator)]


class Latents(Captioned):
    """Clean latents with a caption each.

    Args:
        latents: (n, ...).
        captions: n of them.
        teacher: Encodes the captions.
        originals: A file with the `pictures` (n, channels, height, width), uint8, that the latents
            were encoded from; None where there is none.
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
        """`count` latents with their captions encoded, drawn with replacement."""
        index = self._index(count, generator)
        return self.latents[index], self._encoded(index)

    def originals(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Pictures that were encoded to what `draw` gives of a generator in the same state."""
        if self._pictures is None:
            return None
        return to_float(self._pictures[self._index(count, generator)])


def to_float(pictures: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return pictures.float() / 127.5 - 1

"""Clean latents that come with a teacher, and the pictures they were encoded from."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from edgedistill.common.files import read_json
from edgedistill.common.finite import bad_row
from edgedistill.teachers.base import Teacher

__all__ = ["Captioned", "Latents", "read_variants", "shipped_latents", "to_float"]


class Captioned:
    """Rows with one caption each, drawn with replacement.

    Args:
        captions: Captions of all rows, in order.
        teacher: Encoder of the captions.
        variants: For each row the captions that `vary` draws from, with their shares; None if a
            row has but one.
    """

    def __init__(
        self,
        captions: Sequence[str],
        teacher: Teacher,
        variants: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        self.captions, self.teacher = list(captions), teacher
        self._rows: Tensor | None = None
        self._variants = variants
        self._varied = False

    def vary(self) -> bool:
        """Draw one of a row's captions anew each time from now on, where rows have several.

        Return whether some have.
        """
        self._varied = True
        return any(len(row) > 1 for row in self._variants or ())

    def only(self, rows: Sequence[int]) -> None:
        """Draw only from these rows from now on."""
        self._rows = torch.tensor(list(rows))

    def prompts(self, count: int, generator: torch.Generator) -> list[str]:
        """Return captions of what `draw` gives for a generator in the same state."""
        return self._texts(self._index(count, generator), generator)

    def _encoded(self, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return self.teacher.encode(self._texts(index, generator))

    def _texts(self, index: Tensor, generator: torch.Generator) -> list[str]:
        if not self._varied or self._variants is None:
            return [self.captions[i] for i in index.tolist()]
        chances = torch.rand(len(index), generator=generator)
        return [
            _at(self._variants[i], chance)
            for i, chance in zip(index.tolist(), chances.tolist(), strict=True)
        ]

    def _index(self, count: int, generator: torch.Generator) -> Tensor:
        if self._rows is None:
            return torch.randint(len(self.captions), (count,), generator=generator)
        return self._rows[torch.randint(len(self._rows), (count,), generator=generator)]


def _at(shares: Mapping[str, float], chance: float) -> str:
    """Return the caption at `chance`, in [0, 1), of the shares laid end to end."""
    ends = list(accumulate(shares.values()))
    return list(shares)[min(bisect(ends, chance * ends[-1]), len(ends) - 1)]


class Latents(Captioned):
    """Clean latents with captions.

    Args:
        latents: Latents (n, ...).
        captions: One caption for each latent.
        teacher: Encodes the captions.
        originals: A file with the `pictures` (n, channels, height, width), uint8, that the latents
            were encoded from; None if they are not known.
        variants: As in `Captioned`.
    """

    def __init__(
        self,
        latents: Tensor,
        captions: Sequence[str],
        teacher: Teacher,
        originals: Path | None = None,
        variants: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        if len(latents) != len(captions):
            raise ValueError(f"{len(latents)} latents but {len(captions)} captions")
        super().__init__(captions, teacher, variants)
        self.latents = latents
        self._pictures = None
        if originals is not None:
            with safe_open(originals, "pt") as file:
                self._pictures = file.get_tensor("pictures")  # a view of the mapped file

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw `count` latents with replacement, with their encoded captions."""
        index = self._index(count, generator)
        return self.latents[index], self._encoded(index, generator)

    def originals(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Return pictures that were encoded to what `draw` gives for a generator in this state."""
        if self._pictures is None:
            return None
        return to_float(self._pictures[self._index(count, generator)])


def shipped_latents(folder: Path, teacher: Teacher) -> Latents | None:
    """Read the latents that lie in a teacher's folder, with their captions; None without any.

    The files are data.safetensors and prompts.json; captions.json and originals.safetensors may
    be there too.

    Raises:
        ValueError: If a latent is not finite, or captions.json is damaged.
    """
    latents, prompts = folder / "data.safetensors", folder / "prompts.json"
    if not (latents.is_file() and prompts.is_file()):
        return None
    x0 = load_file(latents)["latents"].float()
    row = bad_row(x0)
    if row is not None:
        raise ValueError(f"{latents}: latents: row {row} is not finite")
    captions = read_json(prompts)["train"]
    originals, variants = folder / "originals.safetensors", folder / "captions.json"
    return Latents(
        x0,
        captions,
        teacher,
        originals if originals.is_file() else None,
        read_variants(variants, len(captions)) if variants.is_file() else None,
    )


def read_variants(file: Path, rows: int) -> list[dict[str, float]]:
    """Read the captions of each of `rows` pictures with their shares: `variants` of a JSON object.

    Raises:
        ValueError: If the file holds anything else.
    """
    found = read_json(file).get("variants")
    if not isinstance(found, list) or len(found) != rows or not all(map(_is_shares, found)):
        raise ValueError(
            f"{file}: variants: {rows} objects of captions with positive shares expected"
        )
    return found


def _is_shares(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    # bool is an int to Python, and no share.
    return bool(entry) and all(type(s) in (int, float) and s > 0 for s in entry.values())


def to_float(pictures: Tensor) -> Tensor:
    """Convert uint8 to [-1, 1]."""
    return pictures.float() / 127.5 - 1

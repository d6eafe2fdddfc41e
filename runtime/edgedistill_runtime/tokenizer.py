"""Prompts to token ids with the bundle's own tokenizer file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

__all__ = ["Tokenizer"]


class Tokenizer:
    """A tokenizer.json with fixed length: right padding, truncation inside the end token.

    Args:
        path: A file of the `tokenizers` library.
        length: Tokens a prompt becomes.
        pad_id: What fills the rest.
    """

    def __init__(self, path: Path, length: int, pad_id: int) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(max_length=length)
        pad_token = self._tokenizer.id_to_token(pad_id)
        self._tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=pad_token)

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Token ids, (N, length)."""
        # One by one: encode_batch wakes a thread pool, which costs more than a short prompt.
        return np.array([self._tokenizer.encode(prompt).ids for prompt in prompts], np.int64)

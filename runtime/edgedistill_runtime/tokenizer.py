"""Convert prompts to token ids with the bundle's own tokenizer files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from edgedistill_runtime.manifest import BundleError, Manifest, TokenizerFile

__all__ = ["Tokenizer", "Tokenizers", "open_tokenizer"]

_log = logging.getLogger(__name__)

_SHOWN = 40
"""Number of characters of a prompt in a message."""


class Tokenizer:
    """A tokenizer.json with fixed length: right padding, truncation inside the end token.

    Args:
        path: A file of the `tokenizers` library.
        length: Number of tokens of a prompt.
        pad_id: Id of the padding token.

    Raises:
        BundleError: If the file is not in the library's format, or has no such token.
    """

    def __init__(self, path: Path, length: int, pad_id: int) -> None:
        self._told = False
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.enable_truncation(max_length=length)
            pad_token = self._tokenizer.id_to_token(pad_id)
            if pad_token is None:
                raise ValueError(f"has no token of id {pad_id}, which the manifest pads with")
            self._tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=pad_token)
            self._tokenizer.encode("")  # with the special tokens, which it may not have
        except BaseException as error:  # the library raises nothing narrower
            raise BundleError(f"{path}: {_said(error)}") from None

    def __call__(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return token ids, and a mask that is 0 for padding, both (N, length).

        Raises:
            ValueError: If a prompt cannot be read, such as a class that the model does not know.
        """
        # Encode one by one: encode_batch wakes a thread pool, which costs more than a short
        # prompt.
        rows = [self._encode(prompt) for prompt in prompts]
        ids = np.array([row.ids for row in rows], np.int64)
        return ids, np.array([row.attention_mask for row in rows], np.int64)

    def _encode(self, prompt: str) -> tokenizers.Encoding:
        try:
            found = self._tokenizer.encode(prompt)
        except BaseException as error:  # the library raises nothing narrower
            said = _said(error)
            if "[UNK]" in said:
                said = "it is none of the classes that the model knows"
            if any(0xD800 <= ord(each) <= 0xDFFF for each in prompt):
                said = "it is not valid Unicode"
            raise ValueError(f"this bundle cannot read the prompt {prompt!r}: {said}") from None
        if found.overflowing and not self._told:
            self._told = True
            _log.warning(
                "prompt %r... has more than the %d tokens that the model reads; the rest is left "
                "out",
                prompt[:_SHOWN],
                len(found.ids),
            )
        return found


def _said(error: BaseException) -> str:
    """Return the library's message; raise errors again that are not the library's.

    Rust's panics are no Exception, and their class has no name to import.
    """
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return str(error)
    raise error


class Tokenizers:
    """All tokenizers of a text encoder.

    Args:
        entries: Manifest entries of the tokenizers.
        directory: Directory of their files.
    """

    def __init__(self, entries: Sequence[TokenizerFile], directory: Path) -> None:
        self._all = [
            (entry, Tokenizer(directory / entry.file, entry.length, entry.pad_id))
            for entry in entries
        ]

    def __call__(self, prompts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Return the text encoder's inputs by name, (N, length) each."""
        inputs = {}
        for entry, tokenizer in self._all:
            inputs[entry.input], mask = tokenizer(prompts)
            if entry.mask:
                inputs[entry.mask] = mask
        return inputs


def open_tokenizer(manifest: Manifest, directory: Path) -> Tokenizers | None:
    """Open the tokenizers of a bundle in `directory`; None if it takes no prompts."""
    return Tokenizers(manifest.tokenizers, directory) if manifest.tokenizers else None

"""Tokenizers that need no files: bytes, and the one word "red"."""

from __future__ import annotations

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

__all__ = ["LENGTH", "clip"]

LENGTH = 8
"""Tokens of a prompt."""


def clip() -> CLIPTokenizer:
    """CLIP's byte pairs."""
    symbols = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>")]
    vocab = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(m) for m in merges)]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    table = {token: i for i, token in enumerate(vocab)}
    return CLIPTokenizer(vocab=table, merges=merges, model_max_length=LENGTH)

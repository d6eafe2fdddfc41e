"""Tokenizers that need no files: bytes, and the one word "red"."""

from __future__ import annotations

from string import printable

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, GemmaTokenizer, T5Tokenizer

__all__ = ["LENGTH", "clip", "gemma", "t5"]

LENGTH = 8
"""Number of tokens of a prompt."""


def clip() -> CLIPTokenizer:
    """Make a CLIP tokenizer of byte pairs."""
    symbols = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>")]
    vocab = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(m) for m in merges)]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    table = {token: i for i, token in enumerate(vocab)}
    return CLIPTokenizer(vocab=table, merges=merges, model_max_length=LENGTH)


def gemma() -> GemmaTokenizer:
    """Make a Gemma tokenizer of byte pairs, with a start token."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    merges = [("r", "e"), ("re", "d")]
    vocab = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "r", "e", "d"]
    vocab += ["".join(pair) for pair in merges]
    return GemmaTokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=merges,
        add_bos_token=True,
        padding_side="right",
        model_max_length=LENGTH,
    )


def t5() -> T5Tokenizer:
    """Make a T5 tokenizer with one piece for each character."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), ("\u2581red", -2.0)]
    vocab += [(symbol, -3.0) for symbol in printable if not symbol.isspace()]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=LENGTH)

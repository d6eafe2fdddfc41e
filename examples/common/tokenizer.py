"""Train CLIP's byte-pair tokenizer on captions.

All 256 bytes are in the vocabulary, within a word and at its end, so any text can be encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

__all__ = ["encode", "load", "train"]

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def train(texts: Iterable[str], entries: int, positions: int, folder: Path) -> CLIPTokenizer:
    """Learn the merges from texts and write the tokenizer's folder.

    Args:
        texts: Captions, the common ones more than once.
        entries: How many to learn; missing word-final bytes and two special tokens come on top.
        positions: Length of every encoded caption.
        folder: Where it goes.
    """
    blank = CLIPTokenizer(vocab={BEGIN: 0, END: 1}, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END, continuing_subword_prefix=""))
    learner.normalizer = blank.normalizer
    learner.pre_tokenizer = blank.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
        special_tokens=[],
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    words = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    words += [byte + _WORD_END for byte in alphabet if byte + _WORD_END not in learned["vocab"]]
    words += [BEGIN, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
        for pair in learned["merges"]
    ]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=positions)
    tokenizer.save_pretrained(folder)
    # transformers 5 saves tokenizer.json alone; older readers and other languages want these.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return tokenizer


def load(folder: Path) -> CLIPTokenizer:
    """Read back what `train` wrote."""
    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> list[list[int]]:
    """Token ids padded with the end token to the tokenizer's length."""
    ids: list[list[int]] = tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length
    ).input_ids
    return ids

"""Train CLIP's byte-pair tokenizer on the captions.

All 256 bytes are in the vocabulary, within a word and at its end, so any text can be encoded.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

import data

ENTRIES = 3072
"""Learned entries; the missing word-final bytes and two special tokens come on top."""
POSITIONS = 16
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def train(work: Path) -> CLIPTokenizer:
    """Learn the merges from every picture's words and write `work/tokenizer/`."""
    _, pictures = data.load(work)
    texts: list[str] = []
    for picture in pictures:
        texts += [picture.caption] * 4 + [*picture.alternatives, *picture.keywords]
    blank = CLIPTokenizer(vocab={BEGIN: 0, END: 1}, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END, continuing_subword_prefix=""))
    learner.normalizer = blank.normalizer
    learner.pre_tokenizer = blank.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
        special_tokens=[],
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    entries = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    entries += [byte + _WORD_END for byte in alphabet if byte + _WORD_END not in learned["vocab"]]
    entries += [BEGIN, END]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    merges = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
        for pair in learned["merges"]
    ]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)
    folder = work / "tokenizer"
    tokenizer.save_pretrained(folder)
    # transformers 5 saves tokenizer.json alone; older readers and other languages want these.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    longest = max(len(tokenizer(p.caption).input_ids) for p in pictures)
    print(f"tokenizer: {len(tokenizer)} entries, longest caption {longest} tokens")
    return tokenizer


def load(work: Path) -> CLIPTokenizer:
    """Read back what `train` wrote."""
    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> list[list[int]]:
    """Token ids padded with the end token to `POSITIONS`."""
    ids: list[list[int]] = tokenizer(
        captions, padding="max_length", truncation=True, max_length=POSITIONS
    ).input_ids
    return ids

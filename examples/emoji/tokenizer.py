"""The tokenizer of these captions."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPTokenizer

import data
from common import tokenizer
from common.tokenizer import encode

__all__ = ["POSITIONS", "encode", "load", "train"]

ENTRIES = 3072
POSITIONS = 16


def train(work: Path) -> CLIPTokenizer:
    """Learn the merges from every picture's words and write `output/tokenizer/`."""
    _, pictures = data.load(work)
    texts: list[str] = []
    for picture in pictures:
        texts += [picture.caption] * 4 + [*picture.alternatives, *picture.keywords]
    trained = tokenizer.train(texts, ENTRIES, POSITIONS, work / "tokenizer")
    longest = max(len(trained(p.caption).input_ids) for p in pictures)
    print(f"tokenizer: {len(trained)} entries, longest caption {longest} tokens")
    return trained


def load(work: Path) -> CLIPTokenizer:
    """Read back what `train` wrote."""
    return tokenizer.load(work / "tokenizer")

"""Captions as people write them: drawn anew for every training sample."""

from __future__ import annotations

import torch
from transformers import CLIPTokenizer

from data import Picture
from tokenizer import encode


class Captions:
    """A table of tokenized captions with their odds, one row a picture.

    Mostly the name and the style; sometimes another name, a keyword beside the name, a keyword
    alone, or no style, so that the teacher follows more than the exact training string.
    """

    def __init__(self, tokenizer: CLIPTokenizer, pictures: list[Picture]) -> None:
        rows = [options(picture) for picture in pictures]
        width = max(len(row) for row in rows)
        texts = sorted({text for row in rows for text in row} | {""})
        place = {text: index for index, text in enumerate(texts)}
        self.ids = torch.tensor(encode(tokenizer, texts))
        """(captions, positions) token ids."""
        self.empty = place[""]
        self.odds = torch.zeros(len(rows), width)
        self.choice = torch.full((len(rows), width), self.empty)
        for index, row in enumerate(rows):
            self.odds[index, : len(row)] = torch.tensor(list(row.values()))
            self.choice[index, : len(row)] = torch.tensor([place[text] for text in row])

    def draw(self, rows: torch.Tensor, dropped: float) -> torch.Tensor:
        """Token ids for these pictures, a share of them empty for classifier-free guidance."""
        column = torch.multinomial(self.odds[rows], 1)
        caption = self.choice[rows].gather(1, column)[:, 0]
        caption[torch.rand(len(rows)) < dropped] = self.empty
        return self.ids[caption]


def options(picture: Picture) -> dict[str, float]:
    """The captions of a picture, with their shares in the teacher's training."""
    style = f", {picture.style}"
    odds = {picture.caption: 0.60, picture.name: 0.08}
    for other in picture.alternatives:
        odds.setdefault(other + style, 0.12 / len(picture.alternatives))
        odds.setdefault(other, 0.03 / len(picture.alternatives))
    for word in picture.keywords:
        odds.setdefault(f"{picture.name} {word}{style}", 0.12 / len(picture.keywords))
        odds.setdefault(word + style, 0.05 / len(picture.keywords))
    return odds

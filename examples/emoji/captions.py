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
        options = [_options(picture) for picture in pictures]
        width = max(len(row) for row in options)
        texts = sorted({text for row in options for text in row} | {""})
        place = {text: index for index, text in enumerate(texts)}
        self.ids = torch.tensor(encode(tokenizer, texts))
        """(captions, positions) token ids."""
        self.empty = place[""]
        self.odds = torch.zeros(len(options), width)
        self.choice = torch.full((len(options), width), self.empty)
        for index, row in enumerate(options):
            self.odds[index, : len(row)] = torch.tensor(list(row.values()))
            self.choice[index, : len(row)] = torch.tensor([place[text] for text in row])

    def draw(self, rows: torch.Tensor, dropped: float) -> torch.Tensor:
        """Token ids for these pictures, a share of them empty for classifier-free guidance."""
        column = torch.multinomial(self.odds[rows], 1)
        caption = self.choice[rows].gather(1, column)[:, 0]
        caption[torch.rand(len(rows)) < dropped] = self.empty
        return self.ids[caption]


def _options(picture: Picture) -> dict[str, float]:
    style = f", {picture.style}"
    options = {picture.caption: 0.60, picture.name: 0.08}
    for other in picture.alternatives:
        options.setdefault(other + style, 0.12 / len(picture.alternatives))
        options.setdefault(other, 0.03 / len(picture.alternatives))
    for word in picture.keywords:
        options.setdefault(f"{picture.name} {word}{style}", 0.12 / len(picture.keywords))
        options.setdefault(word + style, 0.05 / len(picture.keywords))
    return options
